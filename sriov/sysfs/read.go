package sysfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

// ReadString returns an attribute file's text without the newline at its end.
func ReadString(fs FS, name string) (string, error) {
	data, err := fs.ReadFile(name)
	if err != nil {
		return "", err
	}
	return string(bytes.TrimSuffix(data, []byte("\n"))), nil
}

// ReadInt returns an attribute file's decimal number.
func ReadInt(fs FS, name string) (int, error) {
	return readNumber(fs, name, ParseInt)
}

// ReadHex returns an attribute file's hexadecimal number, e.g. 0x15b3.
func ReadHex(fs FS, name string) (uint64, error) {
	return readNumber(fs, name, ParseHex)
}

func readNumber[T any](fs FS, name string, parse func([]byte) (T, error)) (T, error) {
	data, err := fs.ReadFile(name)
	if err != nil {
		var zero T
		return zero, err
	}
	v, err := parse(data)
	if err != nil {
		return v, fmt.Errorf("parse %s: %w", name, err)
	}
	return v, nil
}

// ParseInt reads a decimal number as the kernel prints one: a sign or none,
// digits, and a newline or none.
func ParseInt(data []byte) (int, error) {
	text := string(bytes.TrimSuffix(data, []byte("\n")))
	v, err := strconv.Atoi(text)
	if err != nil || text[0] == '+' {
		return 0, fmt.Errorf("%.40q is not a decimal number", text)
	}
	return v, nil
}

// ParseHex reads a hexadecimal number as the kernel prints one: digits, with
// 0x before them in most files and without in some (sriov_vf_device), and a newline or none.
func ParseHex(data []byte) (uint64, error) {
	text := string(bytes.TrimSuffix(data, []byte("\n")))
	v, err := strconv.ParseUint(strings.TrimPrefix(text, "0x"), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("%.40q is not a hex number like 0x15b3", text)
	}
	return v, nil
}

// LinkBase returns the last element of a symlink's target, which is the name
// of the driver, the group or the function that sysfs links to. It is "" and no
// error when there is no such link.
func LinkBase(fs FS, name string) (string, error) {
	target, err := fs.Readlink(name)
	if IsNotExist(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return target[strings.LastIndexByte(target, '/')+1:], nil
}

// LinkNumber returns the number that a symlink's target ends with, such as the
// IOMMU group of a function. It is -1 and no error when there is no such link.
func LinkNumber(fs FS, name string) (int, error) {
	last, err := LinkBase(fs, name)
	if err != nil || last == "" {
		return -1, err
	}
	n, err := ParseIndex(last)
	if err != nil {
		return -1, fmt.Errorf("parse link %s: %w", name, err)
	}
	return n, nil
}

// ParseIndex reads the plain number by which the kernel names a directory.
func ParseIndex(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return -1, fmt.Errorf("%.40q is not a number", text)
	}
	return int(n), nil
}

// Exists says whether a name is there. Whatever else is wrong with it is an error.
func Exists(fs FS, name string) (bool, error) {
	_, err := fs.Lstat(name)
	if IsNotExist(err) {
		return false, nil
	}
	return err == nil, err
}

// IsNotExist says whether err means that a file is not there.
func IsNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
