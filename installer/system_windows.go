package installer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/kardianos/service"
	"golang.org/x/sys/windows"
)

func place() Place {
	data := filepath.Join(env("ProgramData", `C:\ProgramData`), "touchline")
	return Place{
		Program: filepath.Join(env("ProgramFiles", `C:\Program Files`), "touchline", "touchline.exe"),
		Config:  filepath.Join(data, "config", "touchline.toml"), Data: filepath.Join(data, "data"),
	}
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func (i Installer) ready() error {
	if i.Root != "" {
		return errors.New("--root is for images of Linux")
	}
	if !i.DryRun && !windows.GetCurrentProcessToken().IsElevated() {
		return errors.New("installing needs an administrator: open the prompt with \"Run as administrator\"")
	}
	return nil
}

func (i Installer) installed() (bool, error) {
	s, err := service.New(nothing{}, serviceConfig(i.Place()))
	if err != nil {
		return false, err
	}
	if _, err = s.Status(); errors.Is(err, service.ErrNotInstalled) {
		return false, nil
	}
	return err == nil, err
}

// account: the service runs as LocalService, which owns nothing; its folder is
// for it and for administrators.
func (i Installer) account(p Place) []step {
	return []step{act{what: "create folder " + p.Data + ", of the service and administrators alone", so: func() (bool, error) { return exists(p.Data), nil }, enact: func() error {
		if err := os.MkdirAll(p.Data, 0o700); err != nil {
			return err
		}
		out, err := exec.Command("icacls", p.Data, "/inheritance:r", "/grant", "*S-1-5-19:(OI)(CI)F", "*S-1-5-18:(OI)(CI)F", "*S-1-5-32-544:(OI)(CI)F").CombinedOutput()
		if err != nil {
			return fmt.Errorf("icacls: %w: %s", err, out)
		}
		return nil
	}}}
}

func (i Installer) forgetAccount() []step { return nil }

// program is what runs now. A program that runs can be renamed, not replaced.
func (i Installer) program(p Place) []step {
	self, err := os.Executable()
	if err != nil {
		return []step{act{what: "find own program", so: func() (bool, error) { return false, err }}}
	}
	if strings.EqualFold(self, p.Program) {
		return nil
	}
	return []step{copied{from: self, to: p.Program, previous: p.previous()}}
}

func (i Installer) service(Place) []step {
	return []step{act{what: "register the service " + name + " with the service control manager", so: i.installed, enact: func() error {
		return i.ask(service.Service.Install)
	}}}
}

func (i Installer) removable(bool) error { return nil }
func (i Installer) handOver() []step     { return nil }

func (i Installer) halt(Place) []step {
	return []step{act{what: "stop the service " + name, so: func() (bool, error) {
		s, err := service.New(nothing{}, serviceConfig(i.Place()))
		if err != nil {
			return false, err
		}
		status, err := s.Status()
		return err != nil || status != service.StatusRunning, nil // what is not registered does not run
	}, enact: func() error { return i.ask(service.Service.Stop) }}}
}

func (i Installer) remove(Place) []step {
	return []step{act{what: "remove the service " + name, so: func() (bool, error) { has, err := i.installed(); return !has, err }, enact: func() error {
		return i.ask(service.Service.Uninstall)
	}}}
}

// serviceConfig has the service control manager start the program again a
// second after it died; a start that fails is its failure, too.
func serviceConfig(p Place) *service.Config {
	return &service.Config{
		Name: name, DisplayName: "touchline edge gateway", Description: "Takes the samples of the venue's sensors and forwards them to the cloud.",
		Executable: p.Program, Arguments: []string{"run", "--config", p.Config}, UserName: `NT AUTHORITY\LocalService`,
		Option: service.KeyValue{"OnFailure": "restart", "OnFailureDelayDuration": "1s", "OnFailureResetPeriod": 86400, "DelayedAutoStart": true},
	}
}

// Logs returns the command that shows what the service wrote, the newest first.
func (i Installer) Logs(ctx context.Context, l Log) *exec.Cmd {
	script := fmt.Sprintf("Get-WinEvent -FilterHashtable @{LogName='Application';ProviderName='%s'} -MaxEvents %d | Format-Table -Wrap TimeCreated,LevelDisplayName,Message", name, l.Lines)
	if l.Follow {
		script = "while ($true) { Clear-Host; " + script + "; Start-Sleep 2 }"
	}
	return exec.CommandContext(ctx, "powershell", "-NoProfile", "-Command", script)
}
