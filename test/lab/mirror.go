package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
)

// MirrorVariable names the environment variable that overrides the Debian
// mirror found in the machine's apt configuration.
const MirrorVariable = "VFLAB_MIRROR"

var errNoMirror = errors.New("no Debian mirror in the machine's apt sources: set " + MirrorVariable + " to its URL")

// aptSettings is what an image build takes from the machine's apt.
type aptSettings struct {
	mirror   string   // URL of a Debian archive
	signedBy string   // keyring that the machine's sources name, or empty
	options  []string // lines of apt.conf: proxies, certificates, date checks
}

// readAptSettings asks apt itself, so that every way to write sources and
// settings is understood.
func readAptSettings(ctx context.Context) (aptSettings, error) {
	var s aptSettings
	dump, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return s, fmt.Errorf("read the machine's apt configuration: %w", commandError(err))
	}
	s.options = transportOptions(string(dump))
	if s.mirror = os.Getenv(MirrorVariable); s.mirror != "" {
		return s, nil
	}
	targets, err := exec.CommandContext(ctx, "apt-get", "indextargets",
		"--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)", "Created-By: Packages").Output()
	if err != nil {
		return s, fmt.Errorf("read the machine's apt sources: %w", commandError(err))
	}
	s.mirror, s.signedBy, err = debianMirror(string(targets))
	return s, err
}

// debianSuites are the names under which a Debian archive has a main release,
// as opposed to security, updates or backports.
var debianSuites = regexp.MustCompile(`^(bullseye|bookworm|trixie|forky|duke|sid|oldoldstable|oldstable|stable|testing|unstable)$`)

// debianMirror picks the archive that serves Debian's releases from lines of
// URI|release|component|keyring.
func debianMirror(targets string) (uri, signedBy string, err error) {
	for line := range strings.Lines(targets) {
		field := strings.Split(strings.TrimSpace(line), "|")
		if len(field) != 4 || field[2] != "main" || !debianSuites.MatchString(field[1]) {
			continue
		}
		if strings.HasPrefix(field[3], "/") && !strings.ContainsAny(field[3], " ,") {
			signedBy = field[3]
		}
		return field[0], signedBy, nil
	}
	return "", "", errNoMirror
}

// transportOptions keeps the lines of "apt-config dump" that say how to reach
// and trust an archive.
func transportOptions(dump string) []string {
	var options []string
	scan := bufio.NewScanner(strings.NewReader(dump))
	for scan.Scan() {
		line := scan.Text()
		name, value, _ := strings.Cut(line, " ")
		if value == `"";` || strings.ContainsAny(line, "\n") {
			continue
		}
		for _, prefix := range []string{"Acquire::http::", "Acquire::https::", "Acquire::ftp::", "Acquire::Check-",
			"Acquire::Retries", "Acquire::ForceIPv"} {
			if strings.HasPrefix(strings.ToLower(name), strings.ToLower(prefix)) {
				options = append(options, line)
				break
			}
		}
	}
	return options
}

// commandError adds what a command wrote on stderr to the error of its Output.
func commandError(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return fmt.Errorf("%w: %s", err, lastLine(string(exit.Stderr)))
	}
	return err
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}
