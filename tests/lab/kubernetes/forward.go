package main

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"

	"github.com/spf13/cobra"
)

// newForwardCommand forwards one TCP port from one network namespace to another, without an interface between them. The
// listening socket is inherited as standard input and belongs to the namespace in which it was opened. This process runs
// in the other namespace and connects there.
func newForwardCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "forward ADDRESS",
		Short: "Forward the connections of the listening socket on standard input to ADDRESS",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			listener, err := net.FileListener(os.Stdin)
			if err != nil {
				return err
			}
			for {
				client, err := listener.Accept()
				if errors.Is(err, net.ErrClosed) {
					return err
				}
				if err == nil {
					go forward(client, args[0])
				}
			}
		},
	}
}

// forward copies both directions until both have ended. The end of input of one side closes the output of the other.
func forward(client net.Conn, address string) {
	defer client.Close()
	server, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer server.Close()
	var ended sync.WaitGroup
	for _, direction := range [][2]net.Conn{{client, server}, {server, client}} {
		ended.Go(func() {
			io.Copy(direction[1], direction[0])
			direction[1].(*net.TCPConn).CloseWrite()
		})
	}
	ended.Wait()
}
