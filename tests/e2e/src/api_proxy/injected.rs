//! The script of faults that a scene injects: request → fate. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::api_proxy::fate::{ApiClient, Fate, Script, StoredRequest};

/// The clients that a fault affects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    All,
    /// The agents with these addresses, which are those of their nodes.
    AgentsAt(BTreeSet<IpAddr>),
}

impl Clients {
    pub fn contain(&self, client: &ApiClient) -> bool {
        match self {
            Self::All => true,
            Self::AgentsAt(addresses) => client.is_agent() && addresses.contains(&client.address),
        }
    }
}

/// The requests that a fault affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requests {
    All,
    /// The first `count` writes of each client whose path contains `path`.
    FirstWrites {
        path: &'static str,
        count: usize,
    },
}

/// A fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InjectedFault {
    pub clients: Clients,
    pub requests: Requests,
    pub fate: Fate,
}

/// The present faults, and the requests so far.
#[derive(Debug, Default)]
pub struct InjectedFaults {
    present: BTreeMap<u32, PresentFault>,
    next: u32,
    /// By address of the agent.
    agent_requests: BTreeMap<IpAddr, usize>,
}

#[derive(Debug)]
struct PresentFault {
    fault: InjectedFault,
    /// The affected requests of each client so far.
    affected: BTreeMap<ApiClient, usize>,
}

impl InjectedFaults {
    /// Adds a fault, and returns its number. Of several faults, the oldest decides.
    pub fn add(&mut self, fault: InjectedFault) -> u32 {
        self.next += 1;
        self.present.insert(self.next, PresentFault { fault, affected: BTreeMap::new() });
        self.next
    }

    /// Ends a fault. Returns whether its clients may have open requests that will never be answered.
    pub fn remove(&mut self, number: u32) -> bool {
        self.present.remove(&number).is_some_and(|present| present.fault.fate.is_open_ended())
    }

    /// The number of requests that a present fault has affected.
    pub fn count_affected(&self, number: u32) -> usize {
        self.present.get(&number).map_or(0, |present| present.affected.values().sum())
    }

    /// The number of requests of the agent at this address so far.
    pub fn agent_requests(&self, address: IpAddr) -> usize {
        self.agent_requests.get(&address).copied().unwrap_or_default()
    }
}

impl Script for InjectedFaults {
    fn fate(&mut self, request: &StoredRequest) -> Fate {
        if request.client.is_agent() {
            *self.agent_requests.entry(request.client.address).or_default() += 1;
        }
        for PresentFault { fault, affected } in self.present.values_mut() {
            let affected = affected.entry(request.client.clone()).or_default();
            let is_affected = match fault.requests {
                Requests::All => true,
                Requests::FirstWrites { path, count } => {
                    request.is_write() && request.uri.path().contains(path) && *affected < count
                }
            };
            if is_affected && fault.clients.contain(&request.client) {
                *affected += 1;
                return fault.fate;
            }
        }
        Fate::Pass
    }

    fn withholds_events(&self, watch: &StoredRequest) -> bool {
        let mut faults = self.present.values().map(|present| &present.fault);
        faults.any(|it| it.fate.is_open_ended() && it.clients.contain(&watch.client))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, Method};
    use std::time::Duration;

    fn request(address: &str, method: Method, uri: &'static str) -> StoredRequest {
        let (address, account) = (address.parse().expect("an address"), Some("landfall-node".to_owned()));
        let (client, uri) = (ApiClient { address, account }, http::Uri::from_static(uri));
        StoredRequest { client, method, uri, headers: HeaderMap::new(), body: hyper::body::Bytes::new() }
    }

    fn agent_at(client: &str) -> Clients {
        Clients::AgentsAt(BTreeSet::from([client.parse().expect("an address")]))
    }

    #[test]
    fn a_fault_affects_only_its_clients_and_requests() {
        const STATUS: &str = "/apis/landfall.dev/v1alpha1/loadbalancerips/192.0.2.1/status";
        let first_write = Requests::FirstWrites { path: "/loadbalancerips/", count: 1 };
        let slow = Fate::Delay(Duration::from_secs(1));
        let get = || request("192.0.2.11", Method::GET, STATUS);
        let patch = || request("192.0.2.11", Method::PATCH, STATUS);
        let other_client = || request("192.0.2.12", Method::PATCH, STATUS);
        let other_path = || request("192.0.2.11", Method::PATCH, "/api/v1/nodes/n1");
        for (case, clients, requests, fate, sent, expected) in [
            ("all", Clients::All, Requests::All, slow, vec![get(), other_client()], vec![slow, slow]),
            (
                "one client",
                agent_at("192.0.2.11"),
                Requests::All,
                Fate::Hang,
                vec![get(), other_client()],
                vec![Fate::Hang, Fate::Pass],
            ),
            (
                "the first write",
                agent_at("192.0.2.11"),
                first_write,
                Fate::LoseAnswer,
                vec![get(), patch(), patch()],
                vec![Fate::Pass, Fate::LoseAnswer, Fate::Pass],
            ),
            (
                "the first of each",
                Clients::All,
                first_write,
                Fate::LoseRequest,
                vec![patch(), other_client()],
                vec![Fate::LoseRequest, Fate::LoseRequest],
            ),
            ("another path", Clients::All, first_write, Fate::LoseRequest, vec![other_path()], vec![Fate::Pass]),
        ] {
            let mut faults = InjectedFaults::default();
            let number = faults.add(InjectedFault { clients, requests, fate });
            let fates: Vec<_> = sent.iter().map(|request| faults.fate(request)).collect();
            assert_eq!(fates, expected, "{case}");
            assert_eq!(
                faults.count_affected(number),
                fates.iter().filter(|fate| **fate != Fate::Pass).count(),
                "{case}"
            );
            faults.remove(number);
            assert_eq!(faults.fate(&patch()), Fate::Pass, "{case}: after its end");
        }
    }

    #[test]
    fn events_are_withheld_while_a_client_is_silenced() {
        let watch = request("192.0.2.11", Method::GET, "/api/v1/nodes?&watch=true&resourceVersion=9");
        let list = request("192.0.2.11", Method::GET, "/api/v1/nodes?&limit=500");
        assert_eq!((watch.is_watch(), list.is_watch()), (true, false));
        for (fate, clients, expected) in [
            (Fate::Silence, Clients::All, true),
            (Fate::Hang, agent_at("192.0.2.11"), true),
            (Fate::Silence, agent_at("192.0.2.12"), false),
            (Fate::Refuse(429), Clients::All, false),
        ] {
            let mut faults = InjectedFaults::default();
            let number = faults.add(InjectedFault { clients, requests: Requests::All, fate });
            assert_eq!(faults.withholds_events(&watch), expected, "{fate:?}");
            faults.remove(number);
            assert!(!faults.withholds_events(&watch), "{fate:?}: after its end");
        }
    }

    #[test]
    fn a_fault_of_agents_does_not_affect_a_controller_on_the_node() {
        let mut controller = request("192.0.2.11", Method::GET, "/api/v1/nodes");
        controller.client.account = Some("landfall-controller".to_owned());
        for (clients, expected) in [(agent_at("192.0.2.11"), Fate::Pass), (Clients::All, Fate::Hang)] {
            let mut faults = InjectedFaults::default();
            faults.add(InjectedFault { clients, requests: Requests::All, fate: Fate::Hang });
            assert_eq!((faults.fate(&controller), faults.agent_requests(controller.client.address)), (expected, 0));
        }
    }

    #[test]
    fn requests_are_counted_for_each_agent() {
        let mut faults = InjectedFaults::default();
        for client in ["192.0.2.11", "192.0.2.11", "192.0.2.12"] {
            faults.fate(&request(client, Method::GET, "/api/v1/nodes"));
        }
        let counts =
            ["192.0.2.11", "192.0.2.12", "192.0.2.13"].map(|it| faults.agent_requests(it.parse().expect("an IP")));
        assert_eq!(counts, [2, 1, 0]);
    }
}
