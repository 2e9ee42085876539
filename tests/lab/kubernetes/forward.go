package main

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"

	"github.com/spf13/cobra"
)

// newForwardCommand joins two network namespaces by one TCP port, without an interface between them: the listening
// socket is inherited as standard input and belongs to the namespace it was opened in; this process runs in the other
// one and connects there.
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
					go join(client, args[0])
				}
			}
		},
	}
}

// join copies both ways until both directions have ended, passing on each end of input.
func join(client net.Conn, address string) {
	defer client.Close()
	server, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer server.Close()
	var ended sync.WaitGroup
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		ended.Go(func() {
			io.Copy(way[1], way[0])
			way[1].(*net.TCPConn).CloseWrite()
		})
	}
	ended.Wait()
}
