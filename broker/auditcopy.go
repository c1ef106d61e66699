package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// AuditCopy is a journal whose audit log is also written to a file, one record
// a line, the text as the log has it. The file is behind the journal by what is being written; it is not synced, and it
// is opened for each group of records, so that it may be moved away (logrotate). What it lacks, after an error or a restart, is
// tried again with the next record, as far as the journal still has it. A file that is empty after a restart gets all there is.
type AuditCopy struct {
	*JournalFile
	path string
	log  *slog.Logger

	wake, stop chan struct{}
	ended      chan struct{}
	stopOnce   sync.Once

	// Of the goroutine that writes.
	last    []byte // the record that was written last
	failing bool   // which was logged
}

// CopyAudit begins to copy the audit log of a journal to the file at path. Closing it
// closes the journal. That the file cannot be written is logged once and keeps nothing else from going on.
func CopyAudit(journal *JournalFile, path string, log *slog.Logger) *AuditCopy {
	c := &AuditCopy{JournalFile: journal, path: path, log: log,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{})}
	c.wake <- struct{}{} // what a daemon before this one left
	go c.run()
	return c
}

// Commit implements Store.
func (c *AuditCopy) Commit(ctx context.Context, batch Batch) error {
	err := c.JournalFile.Commit(ctx, batch)
	if err == nil && len(batch.Audit) > 0 {
		select {
		case c.wake <- struct{}{}:
		default: // it is going to look
		}
	}
	return err
}

// Close implements Store. The file has all records first, if it can be written.
func (c *AuditCopy) Close() error {
	c.stopOnce.Do(func() { close(c.stop) })
	<-c.ended
	return c.JournalFile.Close()
}

func (c *AuditCopy) run() {
	defer close(c.ended)
	for {
		select {
		case <-c.wake:
			c.attempt()
		case <-c.stop:
			c.attempt()
			return
		}
	}
}

func (c *AuditCopy) attempt() {
	err := c.catchUp()
	if err != nil && !c.failing {
		c.log.Error("write audit file: records wait in the journal until it can be written", "file", c.path, "err", err)
	} else if err == nil && c.failing {
		c.log.Info("audit file is written again", "file", c.path)
	}
	c.failing = err != nil
}

// catchUp appends what the file does not have.
func (c *AuditCopy) catchUp() (err error) {
	f, err := os.OpenFile(c.path, os.O_RDWR|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	last, err := cutTornLine(f)
	if err != nil {
		return err
	}
	from, err := c.after(last, c.last)
	if err != nil {
		return err
	}
	var lines, newest []byte
	flush := func() error {
		if len(lines) == 0 {
			return nil
		}
		if _, err := f.Write(lines); err != nil {
			return err
		}
		c.last, lines = newest, lines[:0]
		return nil
	}
	_, err = c.Audit(from, func(_ uint64, record []byte) error {
		lines, newest = append(append(lines, record...), '\n'), record
		if len(lines) < 1<<16 {
			return nil
		}
		return flush()
	})
	if err != nil {
		return err
	}
	return flush()
}

// after returns the number of the record after the first of those given that this log has;
// 0, the oldest, when it has none, as after the journal was made anew.
func (c *AuditCopy) after(records ...[]byte) (uint64, error) {
	for _, r := range records {
		var is struct {
			Seq uint64 `json:"seq"`
		}
		if json.Unmarshal(r, &is) != nil || is.Seq == 0 {
			continue
		}
		has := false
		_, err := c.Audit(is.Seq, func(_ uint64, record []byte) error {
			has = bytes.Equal(record, r)
			return errEnough
		})
		if err != nil && !errors.Is(err, errEnough) {
			return 0, err
		}
		if has {
			return is.Seq + 1, nil
		}
	}
	return 0, nil
}

// maxAuditLine is more than a record's text can be.
const maxAuditLine = 1 << 20

// cutTornLine returns the last line of a file, and cuts off what follows
// it: a record of which only the beginning was written.
func cutTornLine(f *os.File) (last []byte, err error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("it is no file: %v", info.Mode())
	}
	size := info.Size()
	for n := min(int64(4096), size); n > 0; n = min(2*n, size) {
		tail := make([]byte, n)
		if _, err := f.ReadAt(tail, size-n); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		end := bytes.LastIndexByte(tail, '\n')
		begin := bytes.LastIndexByte(tail[:max(end, 0)], '\n')
		whole := end >= 0 && (begin >= 0 || n == size)
		switch {
		case !whole && n < size && n < maxAuditLine:
			continue // it began before
		case !whole && n < size:
			return nil, errors.New("its last line is no audit record; move it away")
		}
		if torn := tail[end+1:]; len(torn) > 0 {
			if !bytes.HasPrefix(torn, []byte(`{"seq":`)[:min(len(torn), len(`{"seq":`))]) {
				return nil, errors.New("it ends with something that is no audit record; move it away")
			}
			if err := f.Truncate(size - int64(len(torn))); err != nil {
				return nil, err
			}
		}
		return tail[begin+1 : max(end, begin+1)], nil
	}
	return nil, nil
}
