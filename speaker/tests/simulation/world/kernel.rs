//! The kernels of the simulated nodes, which answer ARP and NDP for the nodes' own addresses.

use std::sync::Arc;
use std::time::Duration;

use speaker::wire::frame::Channel;

use super::fixtures::kernel_answer;
use super::{Scheduled, World};

impl World {
    /// Sends a frame from one node to another, on a LAN.
    pub(super) fn send_to_node(&mut self, [from, to]: [usize; 2], lan: usize, channel: Channel, bytes: Arc<[u8]>) {
        self.solicitation_count += 1;
        if let Some(at) = self.unicast_arrival(lan, from, to) {
            self.schedule(at, Scheduled::Resolve([from, to], lan, channel, bytes));
        }
    }

    /// Lets the kernel of a node answer a frame.
    pub(super) fn resolve(&mut self, [from, to]: [usize; 2], lan: usize, channel: Channel, frame: &[u8]) {
        let host = &self.hosts[to];
        let is_paused = host.paused_at.is_some() && host.suspended_until > self.now;
        if !host.has_power || is_paused || !host.links[lan].has_carrier {
            return;
        }
        let Some(answer) = kernel_answer(lan, to, channel, frame) else { return };
        if let Some(at) = self.unicast_arrival(lan, to, from) {
            self.schedule(at, Scheduled::Arrive(from, lan, channel, answer));
        }
    }

    /// When a frame from one node to another arrives; `None` if it is lost.
    fn unicast_arrival(&mut self, lan: usize, from: usize, to: usize) -> Option<Duration> {
        if self.cut[lan][from][to] || self.unicast_random.happens(self.network.loss) {
            return None;
        }
        let straggles = self.unicast_random.happens(self.network.straggle);
        let limit = if straggles { Duration::from_millis(80) } else { Duration::from_micros(500) };
        Some(self.now + self.unicast_random.time(Duration::from_micros(20), limit))
    }
}
