package touchline

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"touchline/internal/folder"
)

// GatewayIDFile has, in the data folder, the id that the cloud gave to this
// gateway when it was enrolled. It counts where gateway.id is empty.
const GatewayIDFile = "gateway.id"

// KeepGatewayID writes the file, durable when it returns nil.
func KeepGatewayID(dir, id string) error {
	if err := CheckGateway(id); err != nil {
		return err
	}
	return folder.Replace(filepath.Join(dir, GatewayIDFile), []byte(id+"\n"), 0o644) // it is no secret
}

// enrolledID reads the file; "" where there is none, or a folder that can't be
// entered: commands that ask a running gateway are for other users too, and
// whatever needs the folder will say what is wrong with it.
func enrolledID(dir string) (string, error) {
	f, err := os.Open(filepath.Join(dir, GatewayIDFile))
	if err != nil {
		return "", nil
	}
	defer f.Close()
	line, err := bufio.NewReaderSize(f, 4<<10).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("%s is cut short: write gateway.id into the settings", f.Name())
	}
	return strings.TrimSpace(line), nil
}
