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

// newHeartbeatCommand stands in for the kubelets of the light nodes (those with the given label): as long as the
// kernel of a light node answers on the LAN, its Lease is renewed and its Ready condition is true. When it does not
// (cut, powered off), nothing is said, and the node lifecycle controller draws its own conclusion.
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
				// An error passes: the API server may be restarting, and the next round asks again.
				nodes, err := client.CoreV1().Nodes().List(command.Context(), meta.ListOptions{LabelSelector: label})
				if err != nil {
					continue
				}
				var round sync.WaitGroup
				for i := range nodes.Items {
					round.Go(func() {
						if alive(&nodes.Items[i], interval) {
							beat(command.Context(), client, &nodes.Items[i])
						}
					})
				}
				round.Wait()
			}
		},
	}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the API server")
	command.Flags().StringVar(&label, "selector", "", "label that selects the light nodes")
	command.Flags().DurationVar(&interval, "interval", 10*time.Second, "time between two beats")
	return command
}

// alive says whether the node's kernel answers: nothing listens on a kubelet's port there, so a refusal is a yes.
func alive(node *core.Node, patience time.Duration) bool {
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

func beat(ctx context.Context, client kubernetes.Interface, node *core.Node) {
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
