package bench

import (
	"io"
)

// WriteHTML writes the result as one page that needs nothing else.
func (r *Result) WriteHTML(out io.Writer) error {
	if err := r.Check(); err != nil {
		return err
	}
	return nil
}
