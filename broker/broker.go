// Package broker lends virtual functions to guests.
package broker
