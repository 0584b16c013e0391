//go:build windows || darwin

package installer

import (
	"context"
	"errors"
	"time"

	"github.com/kardianos/service"
)

// outlives returns an error where a gateway that started is not running some
// seconds later.
func (i Installer) outlives(ctx context.Context) error {
	s, err := service.New(nothing{}, serviceConfig(i.Place()))
	if err != nil {
		return err
	}
	is := service.StatusRunning
	for n := 0; err == nil && n < liveSeconds; n++ {
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
		if is, err = s.Status(); err == nil && is != service.StatusRunning {
			if err := pause(ctx, moreSeconds*time.Second); err != nil {
				return err
			}
			is, err = s.Status()
			break
		}
	}
	if err == nil && is != service.StatusRunning {
		err = errors.New("it started, and died again and again")
	}
	return err
}
