//go:build windows || darwin

package installer

import (
	"fmt"
	"time"

	"github.com/kardianos/service"
)

// outlives returns an error where a gateway that started is not running some
// seconds later.
func (i Installer) outlives() error {
	s, err := service.New(nothing{}, serviceConfig(i.Place()))
	if err != nil {
		return err
	}
	for n := 1; n <= liveSeconds; n++ {
		time.Sleep(time.Second)
		switch is, err := s.Status(); {
		case err != nil:
			return err
		case is != service.StatusRunning:
			return fmt.Errorf("it started, and died within %d s", n)
		}
	}
	return nil
}
