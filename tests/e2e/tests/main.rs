//! All end-to-end tests, in one binary: they share one compilation of Kubernetes' API, and tests of all files run side
//! by side, two clusters at a time.
//!
//! | module | content |
//! |---|---|
//! | [`advertising`] | the nodes that answer for an address, as seen on the LAN |
//! | [`allocation`] | addresses of Services, reasons of refusals, the controller's crashes and successors |
//! | [`announced_condition`] | the condition Announced, and addresses that another host uses |
//! | [`beside_kube_proxy`] | forwarding beside each kind of Service proxy, and without one |
//! | [`client_access`] | source ranges and session affinity |
//! | [`dead_node`] | new connections after the death of a node, the node that answers then, bounds of the outage |
//! | [`disruptions`] | rolling updates, moves of pods, restarts of Kubernetes |
//! | [`faults`] | faults of hosts, of the LAN and of the Kubernetes API, during which all invariants hold |
//! | [`forwarding`] | changes of endpoints, ports and agents |
//! | [`keys`] | keys that authenticate Hellos |
//! | [`observation`] | breaches of invariants, which the observer must find |
//! | [`uninstalling`] | traces after an uninstallation, and after a removal by other tools |

mod advertising;
mod allocation;
mod announced_condition;
mod beside_kube_proxy;
mod client_access;
mod dead_node;
mod disruptions;
mod faults;
mod forwarding;
mod keys;
mod observation;
mod uninstalling;
