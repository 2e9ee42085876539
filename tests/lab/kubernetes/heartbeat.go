package main

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	coordination "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// newHeartbeatCommand replaces the kubelets of the light nodes (the nodes with the given label). While the kernel of a
// light node answers on the LAN, it renews the node's Lease and keeps its Ready condition true. If the kernel does not
// answer (cut, powered off), it writes nothing, and the node lifecycle controller marks the node as not ready.
func newHeartbeatCommand() *cobra.Command {
	var kubeconfig, label string
	var interval time.Duration
	command := &cobra.Command{
		Use:   "heartbeat",
		Short: "Keep light nodes Ready for as long as they answer on the LAN",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
			if err != nil {
				return err
			}
			config.QPS, config.Burst = 200, 400
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				return err
			}
			for ; ; time.Sleep(interval) {
				// The API server may be restarting: the next round tries again.
				nodes, err := client.CoreV1().Nodes().List(command.Context(), meta.ListOptions{LabelSelector: label})
				if err != nil {
					continue
				}
				var round sync.WaitGroup
				for i := range nodes.Items {
					round.Go(func() {
						if answers(&nodes.Items[i], interval) {
							renew(command.Context(), client, &nodes.Items[i])
						}
					})
				}
				round.Wait()
			}
		},
	}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig file for the API server")
	command.Flags().StringVar(&label, "selector", "", "label that selects the light nodes")
	command.Flags().DurationVar(&interval, "interval", 10*time.Second, "time between two renewals")
	return command
}

// answers reports whether the node's kernel answers. No process listens on a light node's kubelet port, so its kernel
// refuses the connection: a refusal counts as an answer.
func answers(node *core.Node, patience time.Duration) bool {
	for _, address := range node.Status.Addresses {
		if address.Type != core.NodeInternalIP {
			continue
		}
		connection, err := net.DialTimeout("tcp", net.JoinHostPort(address.Address, "10250"), min(patience, 2*time.Second))
		if err == nil {
			connection.Close()
			return true
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	}
	return false
}

// renew renews the node's Lease and sets its Ready condition to true.
func renew(ctx context.Context, client kubernetes.Interface, node *core.Node) {
	leases := client.CoordinationV1().Leases("kube-node-lease")
	now, seconds := meta.NowMicro(), int32(40)
	lease, err := leases.Get(ctx, node.Name, meta.GetOptions{})
	if err == nil {
		lease.Spec.RenewTime = &now
		leases.Update(ctx, lease, meta.UpdateOptions{})
	} else {
		leases.Create(ctx, &coordination.Lease{
			ObjectMeta: meta.ObjectMeta{
				Name:            node.Name,
				OwnerReferences: []meta.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}},
			},
			Spec: coordination.LeaseSpec{HolderIdentity: &node.Name, LeaseDurationSeconds: &seconds, RenewTime: &now},
		}, meta.CreateOptions{})
	}
	for i := range node.Status.Conditions {
		ready := &node.Status.Conditions[i]
		if ready.Type == core.NodeReady && ready.Status != core.ConditionTrue {
			ready.Status, ready.Reason, ready.Message = core.ConditionTrue, "LightNode", "answers on the LAN"
			ready.LastTransitionTime, ready.LastHeartbeatTime = meta.Now(), meta.Now()
			client.CoreV1().Nodes().UpdateStatus(ctx, node, meta.UpdateOptions{})
		}
	}
}
