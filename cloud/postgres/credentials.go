package postgres

import (
	"context"
	"fmt"

	"touchline/cloud"
	"touchline/credential"
)

// Credentials implements cloud.Access.
func (s *Store) Credentials(ctx context.Context) (list []cloud.GatewayCredentials, err error) {
	rows, err := s.pool.Query(ctx, `
		SELECT name, token_sha256, key, not_before, not_after
		FROM gateway LEFT JOIN gateway_key ON gateway_key.gateway = gateway.id AND not_after IS DISTINCT FROM $1
		WHERE revoked IS NULL ORDER BY gateway.id, gateway_key.added`, int64(removedKey))
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		var token, public []byte
		var notBefore, notAfter *int64
		if err := rows.Scan(&name, &token, &public, &notBefore, &notAfter); err != nil {
			return nil, fmt.Errorf("read credentials: %w", err)
		}
		if len(list) == 0 || list[len(list)-1].Gateway != name {
			list = append(list, cloud.GatewayCredentials{Gateway: name})
			copy(list[len(list)-1].Token[:], token)
		}
		if public != nil {
			g := &list[len(list)-1]
			g.Keys = append(g.Keys, credential.GatewayKey{Public: public, NotBefore: timeOf(notBefore), NotAfter: timeOf(notAfter)})
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	return list, nil
}
