// Package manual writes manual pages. The programs have it only where they are
// built with the tag manual, to make packages.
package manual

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// A Program is what pages are made of.
type Program struct {
	Command  *cobra.Command
	Version  string
	File     string // of settings, such as touchline.toml
	Settings []byte // all of them, documented, each with its default
}

// Write writes to folder man1, a page for each command, and man5, one for the
// file of settings. Their date is that of SOURCE_DATE_EPOCH, s since the Unix
// epoch, so that the same source gives the same pages.
func (p Program) Write(folder string) error {
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("read SOURCE_DATE_EPOCH, the date of the pages: %w", err)
	}
	date := time.Unix(seconds, 0).UTC()
	for _, section := range []string{"man1", "man5"} {
		if err := os.MkdirAll(filepath.Join(folder, section), 0o755); err != nil {
			return err
		}
	}
	p.Command.DisableAutoGenTag = true
	p.Command.InitDefaultCompletionCmd()
	header := doc.GenManHeader{Section: "1", Date: &date, Source: p.source(), Manual: "touchline"}
	if err := doc.GenManTree(p.Command, &header, filepath.Join(folder, "man1")); err != nil {
		return fmt.Errorf("write the pages of commands: %w", err)
	}
	return os.WriteFile(filepath.Join(folder, "man5", p.File+".5"), p.settings(date), 0o644)
}

func (p Program) source() string { return p.Command.Name() + " " + p.Version }

// settings is the page of the file of settings: the file itself, as it is shipped.
func (p Program) settings(date time.Time) []byte {
	var page bytes.Buffer
	fmt.Fprintf(&page, ".TH %q 5 %q %q \"touchline\"\n", strings.ToUpper(p.File), date.Format("Jan 2006"), p.source())
	fmt.Fprintf(&page, ".SH NAME\n%s \\- settings of %s\n", p.File, p.Command.Name())
	fmt.Fprintf(&page, ".SH DESCRIPTION\nThe file that \\fB%s run \\-\\-config FILE\\fP reads names settings that differ from the defaults.\n", p.Command.Name())
	fmt.Fprintf(&page, "Flags go before environment variables, and these before the file. Unknown keys are errors.\n\\fB%s check \\-\\-config FILE\\fP says what is wrong with it.\n", p.Command.Name())
	page.WriteString(".SH SETTINGS AND THEIR DEFAULTS\n.nf\n")
	for line := range strings.Lines(string(p.Settings)) {
		line = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(line)
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			page.WriteString(`\&`)
		}
		page.WriteString(line)
	}
	fmt.Fprintf(&page, ".fi\n.SH SEE ALSO\n\\fB%s\\fP(1)\n", p.Command.Name())
	return page.Bytes()
}
