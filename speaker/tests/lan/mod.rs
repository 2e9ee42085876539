//! A LAN for tests: a switch, a client, and nodes with speakers, each in a namespace of its own.
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
use speaker::os::socket::{Buffer, Port, Portion};
use speaker::wire::frame::Channel;
use speaker::{
    Announcements, Authentication, Config, Conflicts, Counters, Inputs, Keys, Neighbours, Outputs, Snapshot,
};
use tokio::sync::{oneshot, watch};

/// An address that the nodes announce.
pub const LB_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);

/// Another one.
pub const LB_IP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xc8);

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

/// How long anything may take before a test fails: a machine may be busy with much else.
const PATIENCE: Duration = Duration::from_secs(20);

/// A LAN.
pub struct Lan {
    switch: Namespace,
    client: Namespace,
    nodes: Vec<Namespace>,
}

impl Lan {
    /// A LAN with a client and so many nodes.
    pub fn new(nodes: usize) -> Self {
        Self::with(nodes, true)
    }

    /// A LAN on which there is no IPv4.
    pub fn without_v4(nodes: usize) -> Self {
        Self::with(nodes, false)
    }

    fn with(nodes: usize, v4: bool) -> Self {
        let switch = Namespace::new().expect("a namespace (this needs root)");
        switch.ip(["link add br0 type bridge", "link set br0 up"]).expect("bridge");
        let plug = |host: &Namespace, port: String, number: usize| {
            veth((&switch, &port), (host, "eth0")).expect("veth");
            switch.ip([format!("link set {port} master br0"), format!("link set {port} up")]).expect("port");
            // The link-local address is good at once, without a second in which the kernel asks whether somebody has it.
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

    /// Starts a speaker on each node. All want [`LB_IP`] and these addresses, and forward these.
    pub fn speakers<A: Into<IpAddr> + Copy>(&self, lb_ips: &[A]) -> Vec<Speaker> {
        let names: Arc<Candidates> = Arc::new((0..self.nodes.len()).map(|n| format!("n{n}")).collect());
        let lb_ips: Vec<IpAddr> = lb_ips.iter().map(|lb_ip| (*lb_ip).into()).collect();
        let wanted: Vec<IpAddr> = lb_ips.iter().copied().chain([LB_IP.into()]).collect();
        let start = |n: usize| Speaker::start(n, &self.nodes[n], Arc::clone(&names), &wanted, &lb_ips);
        (0..self.nodes.len()).map(start).collect()
    }

    /// Waits until exactly one of the nodes announces `lb_ip`: which one.
    pub fn owner(&self, nodes: &[Speaker], lb_ip: impl Into<IpAddr> + Copy) -> usize {
        let lb_ip = lb_ip.into();
        wait("one owner", || {
            let owners: Vec<usize> = (0..nodes.len()).filter(|n| nodes[*n].epoch(lb_ip).is_some()).collect();
            match owners[..] {
                [owner] => Ok(owner),
                _ => Err(format!("{owners:?} announce {lb_ip}")),
            }
        })
    }

    /// Waits until each of `lb_ips` has one owner.
    pub fn all_owned(&self, nodes: &[Speaker], lb_ips: &[Ipv4Addr]) {
        wait("an owner of each", || {
            let owned: Vec<usize> = nodes.iter().map(|node| node.owned(lb_ips).len()).collect();
            if owned.iter().sum::<usize>() == lb_ips.len() { Ok(()) } else { Err(format!("{owned:?}")) }
        });
    }

    /// Drops all frames to and from a node. Its carrier stays.
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

    /// Has the node itself drop everything that passes its IP stack.
    pub fn firewall(&self, node: usize) {
        let chain = |hook: &str| format!("chain {hook} {{ type filter hook {hook} priority 0; policy drop; }};");
        nft(&self.nodes[node], &format!("table inet wall {{ {} {} }}", chain("input"), chain("output")));
    }

    /// For how long the threads of the wire on all nodes have run, by the kernel's account, and how often they went to sleep.
    pub fn ran(&self) -> (Duration, u64) {
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

    /// Lets time pass in which nothing should happen.
    pub fn pass(&self, time: Duration) {
        std::thread::sleep(time);
    }

    /// Has the client look for `lb_ip`, as it does when it sends something.
    pub fn resolve(&self, lb_ip: impl Into<IpAddr>) {
        let lb_ip = lb_ip.into();
        self.client.run(|| {
            let socket = UdpSocket::bind(if lb_ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).expect("bind");
            socket.send_to(b"?", (lb_ip, 9)).expect("send");
        });
    }

    /// Waits until the client's neighbour entry for `lb_ip` has a MAC address that is `right`.
    pub fn neighbour_becomes(&self, lb_ip: impl Into<IpAddr>, right: impl Fn(MacAddr) -> bool + Sync) -> MacAddr {
        let lb_ip = lb_ip.into();
        wait("a neighbour entry", || {
            let entry = self.neighbour(lb_ip);
            let mut words = entry.split_whitespace().skip_while(|word| *word != "lladdr");
            words.nth(1).and_then(mac).filter(|mac| right(*mac)).ok_or(entry)
        })
    }

    /// What the client knows of the neighbour with that address, in the words of `ip neigh`.
    pub fn neighbour(&self, lb_ip: IpAddr) -> String {
        shown(&self.client, &["neigh", "show", &lb_ip.to_string(), "dev", "eth0"])
    }

    /// Waits until the client's kernel has verified by unicast that its neighbour is where it was.
    pub fn verify(&self, lb_ip: impl Into<IpAddr>, mac: MacAddr) {
        let lb_ip = lb_ip.into();
        self.client.ip([format!("neigh replace {lb_ip} lladdr {mac} nud probe dev eth0")]).expect("probe");
        wait("an answer to a probe", || {
            let entry = self.neighbour(lb_ip);
            if entry.contains("REACHABLE") { Ok(()) } else { Err(entry) }
        });
    }

    /// Has the client take an address, as any host does. Waits until its kernel finds that somebody has it already.
    pub fn is_refused_to_the_client(&self, lb_ip: Ipv6Addr) {
        self.client.sysctl("ipv6.conf.eth0.accept_dad", "1").expect("detection of duplicates");
        self.client.ip([format!("addr add {lb_ip}/64 dev eth0")]).expect("address");
        wait("a duplicate to be found", || {
            let shown = shown(&self.client, &["-6", "addr", "show", "dev", "eth0"]);
            if shown.contains("dadfailed") { Ok(()) } else { Err(shown) }
        });
        self.client.ip([format!("addr del {lb_ip}/64 dev eth0")]).expect("no address");
    }

    /// Has the client take an address without asking whether anybody has it.
    pub fn is_taken_by_the_client(&self, lb_ip: impl Into<IpAddr>) {
        let lb_ip = lb_ip.into();
        let length = if lb_ip.is_ipv4() { 32 } else { 128 };
        self.client.ip([format!("addr add {lb_ip}/{length} dev eth0 nodad")]).expect("address");
    }

    /// Waits until the kernel of a node listens to a group, or doesn't.
    pub fn listens_to(&self, node: usize, group: Ipv6Addr, expected: bool) {
        wait("a group", || {
            let shown = shown(&self.nodes[node], &["-6", "maddr", "show", "dev", "eth0"]);
            let group = format!("inet6 {group}");
            let listens = shown.lines().any(|line| line.trim_start().split(" users").next() == Some(group.as_str()));
            if listens == expected { Ok(()) } else { Err(shown) }
        });
    }

    /// Does something, and waits until all of `lb_ips` have been announced unasked by somebody else than `not`. Returns how
    /// long after it the first and the last one were.
    pub fn announced(&self, lb_ips: &[Ipv4Addr], not: MacAddr, act: impl FnOnce() + Send) -> (Duration, Duration) {
        self.client.run(|| {
            let (index, _) = eth0();
            let mut port = Port::open(Channel::Arp).expect("a packet socket");
            port.listen_on([index].into()).expect("listen");
            let (mut missing, mut buffer) = (lb_ips.iter().copied().collect::<BTreeSet<_>>(), Buffer::default());
            act();
            let (begun, mut first) = (Instant::now(), None);
            while !missing.is_empty() {
                let left = PATIENCE.saturating_sub(begun.elapsed());
                assert!(port.readable(left).expect("readable"), "{} of them are not announced", missing.len());
                let take = |_, frame: &[u8]| {
                    let lb_ip = Ipv4Addr::new(frame[28], frame[29], frame[30], frame[31]);
                    if frame[22..28] != not.octets() && missing.remove(&lb_ip) {
                        first.get_or_insert_with(|| begun.elapsed());
                    }
                };
                port.receive(&mut buffer, take).expect("receive");
            }
            (first.unwrap_or_default(), begun.elapsed())
        })
    }

    /// Leaves Hellos that can wait unread for so long: how long ago each of them came, in the order in which they are read.
    pub fn ages_of_hellos(&self, time: Duration) -> Vec<Duration> {
        self.client.run(|| {
            let mut port = Port::open_for(Channel::Hello, Portion::Routine).expect("a packet socket");
            port.listen_on([eth0().0].into()).expect("listen");
            self.pass(time);
            let (mut ages, mut buffer) = (Vec::new(), Buffer::default());
            port.receive_dated(&mut buffer, |_, age, _| ages.push(age)).expect("receive");
            ages
        })
    }

    /// Asks for `lb_ip` by broadcast: who answers, each once.
    pub fn who_answers(&self, lb_ip: Ipv4Addr) -> Vec<MacAddr> {
        self.client.run(|| {
            let (index, own) = eth0();
            let mut request = speaker::wire::arp::gratuitous_request(own, lb_ip);
            request[28..32].copy_from_slice(&CLIENT.octets());
            let mut port = Port::open(Channel::Arp).expect("a packet socket");
            port.listen_on([index].into()).expect("listen");
            port.send([(index, request.as_slice())]).expect("send");
            let (mut answers, mut buffer) = (BTreeSet::new(), Buffer::default());
            // Nobody says that no other answer will come.
            let end = Instant::now() + Duration::from_millis(200);
            while port.readable(end.saturating_duration_since(Instant::now())).expect("readable") {
                let take = |_, frame: &[u8]| {
                    if frame[..6] == own.octets() && frame[20..22] == [0, 2] && frame[28..32] == lb_ip.octets() {
                        answers.insert(MacAddr::from(<[u8; 6]>::try_from(&frame[22..28]).expect("six bytes")));
                    }
                };
                port.receive(&mut buffer, take).expect("receive");
            }
            answers.into_iter().collect()
        })
    }
}

/// A speaker on a node.
pub struct Speaker {
    /// The MAC address of its link.
    pub mac: MacAddr,
    addresses: Vec<IpAddr>,
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
        let config = Config::new(
            "test",
            &format!("n{n}"),
            u64::from(std::process::id()) << 32 | n as u64,
            Authentication::Required,
        );
        let (keys, keys_receiver) = watch::channel(key(b"the key that all have from the start"));
        let inputs = Inputs { snapshot, forwarded: forwarded_receiver, keys: keys_receiver };
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
                        result = run => result.expect("the speaker goes on"),
                        _ = crashed => {}
                    }
                });
            });
        });
        let speaker = Self {
            mac,
            addresses: vec![Ipv4Addr::new(192, 0, 2, 10 + n as u8).into()],
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
        speaker.want(wanted);
        speaker.forward(forwarded);
        speaker
    }

    /// Tells it which addresses there are.
    pub fn want<A: Into<IpAddr> + Copy>(&self, lb_ips: &[A]) {
        let wanted =
            |lb_ip: &A| ((*lb_ip).into(), AnnouncementPolicy { candidates: Arc::clone(&self.candidates), epoch: 0 });
        let addresses = lb_ips.iter().map(wanted).collect();
        let node_addresses = self.addresses.clone();
        self.snapshot.send_replace(Some(Arc::new(Snapshot { node_addresses, addresses })));
    }

    /// Tells it what the dataplane forwards.
    pub fn forward<A: Into<IpAddr> + Copy>(&self, lb_ips: &[A]) {
        self.forwarded.send_replace(Arc::new(lb_ips.iter().map(|lb_ip| (*lb_ip).into()).collect()));
    }

    /// Gives it another key.
    pub fn lock(&self, secret: &[u8]) {
        self.keys.send_replace(key(secret));
    }

    /// Waits until it says that the nodes with these numbers are dead, and no others.
    pub fn tells_of_the_dead(&self, nodes: &[usize]) {
        let expected: BTreeSet<String> = nodes.iter().map(|n| format!("n{n}")).collect();
        wait("who is dead", || {
            let told = self.dead.borrow().clone();
            if told == expected { Ok(()) } else { Err(format!("{told:?} and not {expected:?}")) }
        });
    }

    /// Waits until it tells whether somebody else has an address, and whether it holds the address back for that.
    pub fn tells_of_a_conflict(&self, lb_ip: impl Into<IpAddr>, expected: Option<bool>) {
        let lb_ip = lb_ip.into();
        wait("a conflict, or none", || {
            let told = self.conflicts.borrow().clone();
            if told.get(&lb_ip).map(|conflict| conflict.held_back) == expected {
                Ok(())
            } else {
                Err(format!("{told:?}"))
            }
        });
    }

    /// What it counted.
    pub fn counters(&self) -> Counters {
        *self.counters.borrow()
    }

    /// Waits until it tells that it has counted so much: it tells once an interval.
    pub fn has_counted(&self, enough: impl Fn(&Counters) -> bool) {
        wait("what it counts", || {
            let counters = self.counters();
            if enough(&counters) { Ok(()) } else { Err(format!("{counters:?}")) }
        });
    }

    /// The epoch with which it announces `lb_ip`.
    pub fn epoch(&self, lb_ip: impl Into<IpAddr>) -> Option<u64> {
        self.announcements.borrow().get(&lb_ip.into()).map(|all| all[0].epoch)
    }

    /// What it announces, of these addresses.
    pub fn owned(&self, lb_ips: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
        let announcements = self.announcements.borrow();
        lb_ips.iter().copied().filter(|lb_ip| announcements.contains_key(&IpAddr::V4(*lb_ip))).collect()
    }

    /// Waits until it announces `lb_ip`, or doesn't.
    pub fn announces(&self, lb_ip: impl Into<IpAddr>, expected: bool) {
        let lb_ip = lb_ip.into();
        wait("an announcement, or none", || {
            let epoch = self.epoch(lb_ip);
            if epoch.is_some() == expected { Ok(()) } else { Err(format!("{lb_ip}: {epoch:?}")) }
        });
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        self.thread.take().expect("a thread").join().expect("the speaker stops");
    }

    /// Ends it without a farewell.
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

/// Polls until `look` finds what it looks for.
fn wait<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(state) if Instant::now() > until => panic!("waited for {what} in vain: {state}"),
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

/// What `ip` prints in a namespace.
fn shown(namespace: &Namespace, arguments: &[&str]) -> String {
    let output = namespace.command("ip").args(arguments).stdin(Stdio::null()).output().expect("ip");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn nft(namespace: &Namespace, rules: &str) {
    let output = namespace.command("nft").arg(rules).stdin(Stdio::null()).output().expect("nft");
    assert!(output.status.success(), "nft {rules}: {}", String::from_utf8_lossy(&output.stderr));
}
