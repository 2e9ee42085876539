//! A LAN of network namespaces: a switch, a client, and nodes with speakers.
//!
//! ```text
//!    client --- switch (bridge br0, ports p0 p1 ..) --- n0, n1, .. (eth0, 192.0.2.10 + n, 2001:db8::10 + n)
//! ```

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crds::MacAddr;
use model::eligibility::{AnnouncementPolicy, Candidates};
use netns::{Namespace, veth};
use speaker::os::socket::{PacketSocket, ReceiveBuffer};
use speaker::wire::frame::{Channel, FrameClass};
use speaker::{Announcements, Config, Conflicts, Counters, Inputs, Keys, Neighbours, Outputs, Snapshot};
use tokio::sync::{oneshot, watch};

/// An address that the nodes announce.
pub const LB_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);

/// An IPv6 address that the nodes announce.
pub const LB_IP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xc8);

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

/// The bound of each wait. It is generous, because the machine may be busy.
const TIMEOUT: Duration = Duration::from_secs(20);

pub struct Lan {
    switch: Namespace,
    client: Namespace,
    nodes: Vec<Namespace>,
}

impl Lan {
    /// A LAN with a client and this number of nodes.
    pub fn new(nodes: usize) -> Self {
        Self::build(nodes, true)
    }

    /// A LAN without IPv4.
    pub fn without_v4(nodes: usize) -> Self {
        Self::build(nodes, false)
    }

    fn build(nodes: usize, v4: bool) -> Self {
        let switch = Namespace::new().expect("a namespace (this needs root)");
        switch.ip(["link add br0 type bridge", "link set br0 up"]).expect("bridge");
        let plug = |host: &Namespace, port: String, number: usize| {
            veth((&switch, &port), (host, "eth0")).expect("veth");
            switch.ip([format!("link set {port} master br0"), format!("link set {port} up")]).expect("port");
            // The link-local address is usable at once, without a second of duplicate address detection.
            host.sysctl("ipv6.conf.eth0.accept_dad", "0").expect("no detection of duplicates");
            let mut commands =
                vec!["link set eth0 up".into(), format!("addr add 2001:db8::{number}/64 dev eth0 nodad")];
            commands.extend(v4.then(|| format!("addr add 192.0.2.{number}/24 dev eth0")));
            host.ip(commands).expect("host");
        };
        let client = Namespace::new().expect("client");
        plug(&client, "client".into(), 9);
        let nodes: Vec<Namespace> = (0..nodes).map(|_| Namespace::new().expect("node")).collect();
        for (n, node) in nodes.iter().enumerate() {
            plug(node, format!("p{n}"), 10 + n);
        }
        Self { switch, client, nodes }
    }

    /// The namespace of a node.
    pub fn node(&self, n: usize) -> &Namespace {
        &self.nodes[n]
    }

    /// Starts a speaker on each node. All nodes may announce [`LB_IP`] and `lb_ips`, and forward `lb_ips`.
    pub fn speakers<A: Into<IpAddr> + Copy>(&self, lb_ips: &[A]) -> Vec<Speaker> {
        let names: Arc<Candidates> = Arc::new((0..self.nodes.len()).map(|n| format!("n{n}")).collect());
        let lb_ips: Vec<IpAddr> = lb_ips.iter().map(|lb_ip| (*lb_ip).into()).collect();
        let wanted: Vec<IpAddr> = lb_ips.iter().copied().chain([LB_IP.into()]).collect();
        let start = |n: usize| Speaker::start(n, &self.nodes[n], Arc::clone(&names), &wanted, &lb_ips);
        (0..self.nodes.len()).map(start).collect()
    }

    /// Waits until exactly one node announces `lb_ip`. Returns its number.
    pub fn wait_owner(&self, nodes: &[Speaker], lb_ip: impl Into<IpAddr> + Copy) -> usize {
        let lb_ip = lb_ip.into();
        wait("one owner", || {
            let owners: Vec<usize> = (0..nodes.len()).filter(|n| nodes[*n].epoch(lb_ip).is_some()).collect();
            match owners[..] {
                [owner] => Ok(owner),
                _ => Err(format!("{owners:?} announce {lb_ip}")),
            }
        })
    }

    /// Waits until one node announces `lb_ip`, which is not `former`. Returns its number.
    pub fn wait_owner_except(&self, nodes: &[Speaker], lb_ip: impl Into<IpAddr> + Copy, former: usize) -> usize {
        wait("another owner", || match self.wait_owner(nodes, lb_ip) {
            owner if owner != former => Ok(owner),
            _ => Err(format!("still {former}")),
        })
    }

    /// Waits until each of `lb_ips` has one owner.
    pub fn wait_all_owned(&self, nodes: &[Speaker], lb_ips: &[Ipv4Addr]) {
        wait("an owner of each", || {
            let owned: Vec<usize> = nodes.iter().map(|node| node.owned_addresses(lb_ips).len()).collect();
            if owned.iter().sum::<usize>() == lb_ips.len() { Ok(()) } else { Err(format!("{owned:?}")) }
        });
    }

    /// Drops all frames to and from a node. Its carrier stays up.
    pub fn cut(&self, node: usize) {
        let rules = format!(
            "table bridge cut{node} {{ chain c {{ type filter hook prerouting priority 0; iifname p{node} drop; }}; \
             chain o {{ type filter hook postrouting priority 0; oifname p{node} drop; }}; }}"
        );
        nft(&self.switch, &rules);
    }

    /// Ends [`cut`](Self::cut).
    pub fn heal(&self, node: usize) {
        nft(&self.switch, &format!("delete table bridge cut{node}"));
    }

    /// Makes the node itself drop all packets in its IP stack.
    pub fn firewall(&self, node: usize) {
        let chain = |hook: &str| format!("chain {hook} {{ type filter hook {hook} priority 0; policy drop; }};");
        nft(&self.nodes[node], &format!("table inet wall {{ {} {} }}", chain("input"), chain("output")));
    }

    /// The CPU time of the wire threads on all nodes, as counted by the kernel, and the number of their sleeps.
    pub fn cpu_time_and_sleeps(&self) -> (Duration, u64) {
        let inode = |path: String| std::fs::metadata(path).map(|namespace| namespace.ino()).ok();
        let own = |node: &Namespace| node.run(|| inode("/proc/thread-self/ns/net".into())).expect("a namespace");
        let nodes: BTreeSet<u64> = self.nodes.iter().map(own).collect();
        let tasks = std::fs::read_dir("/proc/self/task").expect("tasks").flatten();
        let ran = tasks.filter_map(|task| {
            let path = task.path().display().to_string();
            let name = std::fs::read_to_string(format!("{path}/comm")).ok()?;
            let inside = inode(format!("{path}/ns/net")).is_some_and(|namespace| nodes.contains(&namespace));
            let account = std::fs::read_to_string(format!("{path}/schedstat")).ok()?;
            let ran: u64 = account.split(' ').next()?.parse().ok()?;
            let status = std::fs::read_to_string(format!("{path}/status")).ok()?;
            let slept = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            let slept: u64 = slept.trim().parse().ok()?;
            (inside && name.trim() == "landfall-wire").then_some((Duration::from_nanos(ran), slept))
        });
        ran.fold((Duration::ZERO, 0), |(ran, slept), (more, again)| (ran + more, slept + again))
    }

    /// Waits for this time, in which nothing should happen.
    pub fn wait_idly(&self, time: Duration) {
        std::thread::sleep(time);
    }

    /// Makes the client resolve `lb_ip`, by sending a packet to it.
    pub fn resolve(&self, lb_ip: impl Into<IpAddr>) {
        let lb_ip = lb_ip.into();
        self.client.run(|| {
            let socket = UdpSocket::bind(if lb_ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).expect("bind");
            socket.send_to(b"?", (lb_ip, 9)).expect("send");
        });
    }

    /// Waits until the client's neighbour entry for `lb_ip` has a MAC address that satisfies `right`. Returns the MAC
    /// address.
    pub fn wait_neighbour(&self, lb_ip: impl Into<IpAddr>, right: impl Fn(MacAddr) -> bool + Sync) -> MacAddr {
        let lb_ip = lb_ip.into();
        wait("a neighbour entry", || {
            let entry = self.neighbour(lb_ip);
            let mut words = entry.split_whitespace().skip_while(|word| *word != "lladdr");
            words.nth(1).and_then(mac).filter(|mac| right(*mac)).ok_or(entry)
        })
    }

    /// The client's neighbour entry, as printed by `ip neigh`.
    pub fn neighbour(&self, lb_ip: IpAddr) -> String {
        ip_output(&self.client, &["neigh", "show", &lb_ip.to_string(), "dev", "eth0"])
    }

    /// Waits until the client's kernel has verified its neighbour entry by unicast.
    pub fn verify_neighbour(&self, lb_ip: impl Into<IpAddr>, mac: MacAddr) {
        let lb_ip = lb_ip.into();
        self.client.ip([format!("neigh replace {lb_ip} lladdr {mac} nud probe dev eth0")]).expect("probe");
        wait("an answer to a probe", || {
            let entry = self.neighbour(lb_ip);
            if entry.contains("REACHABLE") { Ok(()) } else { Err(entry) }
        });
    }

    /// Adds an address to the client, and waits until duplicate address detection fails.
    pub fn wait_duplicate_detected(&self, lb_ip: Ipv6Addr) {
        self.client.sysctl("ipv6.conf.eth0.accept_dad", "1").expect("detection of duplicates");
        self.client.ip([format!("addr add {lb_ip}/64 dev eth0")]).expect("address");
        wait("a duplicate to be found", || {
            let output = ip_output(&self.client, &["-6", "addr", "show", "dev", "eth0"]);
            if output.contains("dadfailed") { Ok(()) } else { Err(output) }
        });
        self.client.ip([format!("addr del {lb_ip}/64 dev eth0")]).expect("no address");
    }

    /// Adds an address to the client without duplicate address detection.
    pub fn give_to_client(&self, lb_ip: impl Into<IpAddr>) {
        let lb_ip = lb_ip.into();
        let length = if lb_ip.is_ipv4() { 32 } else { 128 };
        self.client.ip([format!("addr add {lb_ip}/{length} dev eth0 nodad")]).expect("address");
    }

    /// Waits until the kernel of a node is a member of a group. If `expected` is false, waits until it has left the
    /// group.
    pub fn wait_membership(&self, node: usize, group: Ipv6Addr, expected: bool) {
        wait("the expected membership", || {
            let output = ip_output(&self.nodes[node], &["-6", "maddr", "show", "dev", "eth0"]);
            let group = format!("inet6 {group}");
            let listens = output.lines().any(|line| line.trim_start().split(" users").next() == Some(group.as_str()));
            if listens == expected { Ok(()) } else { Err(output) }
        });
    }

    /// Calls `act`, and waits until hosts other than `except` have sent gratuitous ARP for all of `lb_ips`. Returns the
    /// times until the first and the last of these addresses was announced.
    pub fn time_announcements(
        &self,
        lb_ips: &[Ipv4Addr],
        except: MacAddr,
        act: impl FnOnce() + Send,
    ) -> (Duration, Duration) {
        self.client.run(|| {
            let (index, _) = eth0();
            let mut socket = PacketSocket::open(Channel::Arp, FrameClass::All).expect("a packet socket");
            socket.listen_on([index].into()).expect("listen");
            let (mut missing, mut buffer) = (lb_ips.iter().copied().collect::<BTreeSet<_>>(), ReceiveBuffer::default());
            act();
            let (begun, mut first) = (Instant::now(), None);
            while !missing.is_empty() {
                let left = TIMEOUT.saturating_sub(begun.elapsed());
                assert!(socket.wait_readable(left).expect("readable"), "{} addresses are not announced", missing.len());
                let take = |_, _, frame: &[u8]| {
                    let lb_ip = Ipv4Addr::new(frame[28], frame[29], frame[30], frame[31]);
                    if frame[22..28] != except.octets() && missing.remove(&lb_ip) {
                        first.get_or_insert_with(|| begun.elapsed());
                    }
                };
                socket.receive(&mut buffer, take).expect("receive");
            }
            (first.unwrap_or_default(), begun.elapsed())
        })
    }

    /// Leaves routine Hellos unread for this time. Returns their ages in the order in which they are read.
    pub fn hello_ages(&self, time: Duration) -> Vec<Duration> {
        self.client.run(|| {
            let mut socket = PacketSocket::open(Channel::Hello, FrameClass::Routine).expect("a packet socket");
            socket.listen_on([eth0().0].into()).expect("listen");
            self.wait_idly(time);
            let (mut ages, mut buffer) = (Vec::new(), ReceiveBuffer::default());
            socket.receive(&mut buffer, |_, age, _| ages.push(age)).expect("receive");
            ages
        })
    }

    /// Resolves `lb_ip` by broadcast. Returns the hosts that answer, without duplicates.
    pub fn arp_answers(&self, lb_ip: Ipv4Addr) -> Vec<MacAddr> {
        self.client.run(|| {
            let (index, own) = eth0();
            let mut request = speaker::wire::arp::gratuitous_request(own, lb_ip);
            request[28..32].copy_from_slice(&CLIENT.octets());
            let mut socket = PacketSocket::open(Channel::Arp, FrameClass::All).expect("a packet socket");
            socket.listen_on([index].into()).expect("listen");
            socket.send([(index, request.as_slice())]).expect("send");
            let (mut answers, mut buffer) = (BTreeSet::new(), ReceiveBuffer::default());
            // Several hosts may answer, so this waits until the end.
            let end = Instant::now() + Duration::from_millis(200);
            while socket.wait_readable(end.saturating_duration_since(Instant::now())).expect("readable") {
                let take = |_, _, frame: &[u8]| {
                    if frame[..6] == own.octets() && frame[20..22] == [0, 2] && frame[28..32] == lb_ip.octets() {
                        answers.insert(MacAddr::from(<[u8; 6]>::try_from(&frame[22..28]).expect("six bytes")));
                    }
                };
                socket.receive(&mut buffer, take).expect("receive");
            }
            answers.into_iter().collect()
        })
    }
}

/// A speaker on a node.
pub struct Speaker {
    pub mac: MacAddr,
    node_addresses: Vec<IpAddr>,
    candidates: Arc<Candidates>,
    snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    forwarded: watch::Sender<Arc<BTreeSet<IpAddr>>>,
    keys: watch::Sender<Arc<Keys>>,
    announcements: watch::Receiver<Announcements>,
    counters: watch::Receiver<Counters>,
    conflicts: watch::Receiver<Conflicts>,
    dead: watch::Receiver<BTreeSet<String>>,
    stop: Option<oneshot::Sender<()>>,
    crash: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Speaker {
    fn start(
        n: usize,
        namespace: &Namespace,
        candidates: Arc<Candidates>,
        wanted: &[IpAddr],
        forwarded: &[IpAddr],
    ) -> Self {
        let mac = namespace.run(eth0).1;
        let (snapshot_sender, snapshot) = watch::channel(None);
        let (forwarded_sender, forwarded_receiver) = watch::channel(Arc::default());
        let (announcements, announcements_receiver) = watch::channel(Announcements::new());
        let (counters, counters_receiver) = watch::channel(Counters::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let (crash, crashed) = oneshot::channel::<()>();
        let config = Config::new("test", &format!("n{n}"), u64::from(std::process::id()) << 32 | n as u64);
        let (keys, keys_receiver) = watch::channel(key(b"the first key of all speakers"));
        let (links_sender, links) = watch::channel(None);
        let inputs = Inputs { snapshot, forwarded: forwarded_receiver, links, keys: keys_receiver };
        let (conflicts, conflicts_receiver) = watch::channel(Conflicts::default());
        let (dead, dead_receiver) = watch::channel(BTreeSet::new());
        let (neighbours, _) = watch::channel(Neighbours::default());
        let outputs = Outputs { announcements, conflicts, counters, dead, neighbours };
        let inside = namespace.clone();
        let thread = std::thread::spawn(move || {
            inside.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
                runtime.block_on(async {
                    let run = speaker::run(config, inputs, outputs, async {
                        if stopped.await.is_err() {
                            std::future::pending().await
                        }
                    });
                    tokio::select! {
                        result = run => result.expect("the speaker runs"),
                        end = netlink::watch::watch_links(links_sender) => panic!("{end:?}"),
                        _ = crashed => {}
                    }
                });
            });
        });
        let speaker = Self {
            mac,
            node_addresses: vec![Ipv4Addr::new(192, 0, 2, 10 + n as u8).into()],
            candidates,
            snapshot: snapshot_sender,
            forwarded: forwarded_sender,
            keys,
            announcements: announcements_receiver,
            counters: counters_receiver,
            conflicts: conflicts_receiver,
            dead: dead_receiver,
            stop: Some(stop),
            crash: Some(crash),
            thread: Some(thread),
        };
        speaker.set_addresses(wanted);
        speaker.set_forwarded(forwarded);
        speaker
    }

    /// Sets the addresses in the snapshot. All nodes are candidates for them.
    pub fn set_addresses<A: Into<IpAddr> + Copy>(&self, lb_ips: &[A]) {
        let wanted =
            |lb_ip: &A| ((*lb_ip).into(), AnnouncementPolicy { candidates: Arc::clone(&self.candidates), epoch: 0 });
        let addresses = lb_ips.iter().map(wanted).collect();
        let node_addresses = self.node_addresses.clone();
        self.snapshot.send_replace(Some(Arc::new(Snapshot { node_addresses, addresses })));
    }

    /// Sets the addresses that the dataplane forwards.
    pub fn set_forwarded<A: Into<IpAddr> + Copy>(&self, lb_ips: &[A]) {
        self.forwarded.send_replace(Arc::new(lb_ips.iter().map(|lb_ip| (*lb_ip).into()).collect()));
    }

    /// Replaces the key.
    pub fn set_key(&self, secret: &[u8]) {
        self.keys.send_replace(key(secret));
    }

    /// Waits until exactly the nodes with these numbers are reported as dead.
    pub fn wait_dead(&self, nodes: &[usize]) {
        let expected: BTreeSet<String> = nodes.iter().map(|n| format!("n{n}")).collect();
        wait("the dead nodes", || {
            let dead = self.dead.borrow().clone();
            if dead == expected { Ok(()) } else { Err(format!("{dead:?} and not {expected:?}")) }
        });
    }

    /// Waits until a conflict about `lb_ip` is reported, with this value of `held_back`. `None`: until no conflict is
    /// reported.
    pub fn wait_conflict(&self, lb_ip: impl Into<IpAddr>, expected: Option<bool>) {
        let lb_ip = lb_ip.into();
        wait("the expected conflict", || {
            let conflicts = self.conflicts.borrow().clone();
            if conflicts.get(&lb_ip).map(|conflict| conflict.held_back) == expected {
                Ok(())
            } else {
                Err(format!("{conflicts:?}"))
            }
        });
    }

    pub fn counters(&self) -> Counters {
        *self.counters.borrow()
    }

    /// Waits until the published counters satisfy `enough`.
    pub fn wait_counters(&self, enough: impl Fn(&Counters) -> bool) {
        wait("the counters", || {
            let counters = self.counters();
            if enough(&counters) { Ok(()) } else { Err(format!("{counters:?}")) }
        });
    }

    /// The epoch with which the node announces `lb_ip`.
    pub fn epoch(&self, lb_ip: impl Into<IpAddr>) -> Option<u64> {
        self.announcements.borrow().get(&lb_ip.into()).map(|all| all[0].epoch)
    }

    /// The addresses among `lb_ips` that the node announces.
    pub fn owned_addresses(&self, lb_ips: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
        let announcements = self.announcements.borrow();
        lb_ips.iter().copied().filter(|lb_ip| announcements.contains_key(&IpAddr::V4(*lb_ip))).collect()
    }

    /// Waits until the node announces `lb_ip`. If `expected` is false, waits until it does not.
    pub fn wait_announced(&self, lb_ip: impl Into<IpAddr>, expected: bool) {
        let lb_ip = lb_ip.into();
        wait("the expected announcement", || {
            let epoch = self.epoch(lb_ip);
            if epoch.is_some() == expected { Ok(()) } else { Err(format!("{lb_ip}: {epoch:?}")) }
        });
    }

    /// Requests the speaker to stop, and waits until it has ended.
    pub fn stop(mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        self.thread.take().expect("a thread").join().expect("the speaker stops");
    }

    /// Ends the speaker without a goodbye.
    pub fn crash(self) {}
}

impl Drop for Speaker {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.crash.take().map(|crash| crash.send(()));
            thread.join().expect("the speaker ends");
        }
    }
}

fn key(secret: &[u8]) -> Arc<Keys> {
    Arc::new(Keys::new([secret]).expect("a key"))
}

/// Polls until `look` succeeds.
fn wait<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + TIMEOUT;
    loop {
        match look() {
            Ok(found) => return found,
            Err(state) if Instant::now() > until => panic!("timeout, waiting for {what}: {state}"),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// The index and the MAC address of eth0 in this namespace.
fn eth0() -> (u32, MacAddr) {
    let output = std::process::Command::new("ip").args(["-o", "link", "show", "dev", "eth0"]).output().expect("ip");
    let text = String::from_utf8_lossy(&output.stdout);
    let index = text.split(':').next().and_then(|index| index.parse().ok());
    let mac = text.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).and_then(mac);
    (index.expect("an index"), mac.expect("an address"))
}

fn mac(text: &str) -> Option<MacAddr> {
    let bytes: Vec<u8> = text.split(':').map_while(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    Some(MacAddr::from(<[u8; 6]>::try_from(bytes).ok()?)).filter(|mac| *mac != MacAddr::zero())
}

/// The output of `ip` in a namespace.
fn ip_output(namespace: &Namespace, arguments: &[&str]) -> String {
    let output = namespace.command("ip").args(arguments).stdin(Stdio::null()).output().expect("ip");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn nft(namespace: &Namespace, rules: &str) {
    let output = namespace.command("nft").arg(rules).stdin(Stdio::null()).output().expect("nft");
    assert!(output.status.success(), "nft {rules}: {}", String::from_utf8_lossy(&output.stderr));
}
