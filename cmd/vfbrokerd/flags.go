package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"

	"github.com/spf13/cobra"
)

// defaultConfigFile is read when --config is not given, if it is there.
const defaultConfigFile = "/etc/vfbroker/config.yaml"

// flags override the configuration file.
type flags struct {
	config, root                                         string
	socket, stateDir, metricsSocket, logFormat, logLevel string
}

// load reads the configuration file and puts the flags that were given over it.
func (f *flags) load(cmd *cobra.Command) (config, error) {
	c, err := f.read()
	if err != nil {
		return c, err
	}
	for name, over := range map[string]struct{ to, from *string }{
		"socket":         {&c.Socket, &f.socket},
		"state-dir":      {&c.StateDir, &f.stateDir},
		"metrics-socket": {&c.MetricsSocket, &f.metricsSocket},
		"log-format":     {&c.Log.Format, &f.logFormat},
		"log-level":      {&c.Log.Level, &f.logLevel},
	} {
		if cmd.Flags().Changed(name) {
			*over.to = *over.from
		}
	}
	if err := c.check(); err != nil {
		return c, fmt.Errorf("check flags: %w", err)
	}
	return c, nil
}

func (f *flags) read() (config, error) {
	path := f.config
	if path == "" {
		path = defaultConfigFile
	}
	file, err := openTrusted(path)
	if errors.Is(err, fs.ErrNotExist) && f.config == "" {
		return defaultConfig(), nil
	}
	if err != nil {
		return config{}, fmt.Errorf("read configuration: %w", err)
	}
	defer file.Close()
	return parseConfig(io.LimitReader(file, maxConfig), path)
}

func (l logConfig) level() (level slog.Level, err error) {
	err = level.UnmarshalText([]byte(l.Level))
	return level, err
}

func newLogger(l logConfig, w io.Writer) *slog.Logger {
	level, _ := l.level() // has been checked
	options := &slog.HandlerOptions{Level: level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
