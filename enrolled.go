package touchline

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// GatewayIDFile has, in the data folder, the id that the cloud gave to this
// gateway when it was enrolled. It counts where gateway.id is empty.
const GatewayIDFile = "gateway.id"

// KeepGatewayID writes the file, durable when it returns nil.
func KeepGatewayID(dir, id string) error {
	if err := CheckGateway(id); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, GatewayIDFile+".*.part")
	if err != nil {
		return err
	}
	_, err = f.WriteString(id + "\n")
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()) // it is no secret
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, GatewayIDFile))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
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
