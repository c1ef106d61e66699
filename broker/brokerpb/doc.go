// Package brokerpb is the API vfbroker.v1: broker.proto and the code that is
// generated from it.
package brokerpb

//go:generate go run ./gen
