//! The engine against the kernel's nf_tables, and the result as `nft` prints it.

mod sample;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use crds::Protocol::Tcp;
use dataplane::flows::affinity::retired_clients;
use dataplane::nft::codec::contents::table_contents;
use dataplane::nft::codec::request::Requests;
use dataplane::nft::diff::{ElementChange, diff_elements};
use dataplane::nft::elements::{ElementKey, ElementValue, Elements, KeyParts};
use dataplane::nft::layout::{SetId, Table};
use dataplane::nft::projection::ruleset_elements;
use dataplane::nft::{Engine, KernelTable, TableOutcome, TableOutcomes};
use dataplane::rules::{Frontend, Planner, Ruleset, plan_ruleset};
use dataplane::snapshot::LinkName;
use dataplane::{Snapshot, remove};
use netlink::attribute::Attribute;
use netns::Namespace;
use sample::{Described, NODE, everything, ip, nothing, on_eth0, ready, service, snapshot};

/// A host with a link.
fn host() -> Namespace {
    let host = Namespace::new().expect("a namespace");
    host.ip(["link add eth0 type veth peer name eth1", "link set eth0 up"]).expect("a link");
    host
}

fn plan(snapshot: &Snapshot) -> Arc<Ruleset> {
    Arc::new(plan_ruleset(snapshot))
}

/// The output of `nft`.
fn nft(namespace: &Namespace, arguments: &[&str]) -> String {
    let output = namespace.command("nft").args(arguments).output().expect("run nft");
    assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Runs these lines with `nft`.
fn nft_do(namespace: &Namespace, lines: &str) {
    let mut child =
        namespace.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("nft");
    child.stdin.take().expect("stdin").write_all(lines.as_bytes()).expect("write");
    let output = child.wait_with_output().expect("wait");
    assert!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
}

fn engine(namespace: &Namespace) -> Engine {
    namespace.run(|| Engine::open().expect("an engine"))
}

/// The elements of each table.
fn by_table(ruleset: &Ruleset) -> BTreeMap<Table, Elements> {
    let mut tables: BTreeMap<Table, Elements> = Table::ALL.map(|table| (table, Elements::new())).into();
    for (key, value) in ruleset_elements(ruleset) {
        tables.entry(key.table()).or_default().insert(key, value);
    }
    tables
}

/// The outcome of deleting a table with these elements.
fn removal((table, elements): (Table, Elements)) -> (Table, TableOutcome) {
    (table, TableOutcome::Removed(diff_elements(&elements, &Elements::new())))
}

/// The expected observation after `ruleset` was applied.
fn ours(ruleset: &Ruleset) -> BTreeMap<Table, KernelTable> {
    let observed =
        |elements: Elements| if elements.is_empty() { KernelTable::Absent } else { KernelTable::Ours(elements) };
    by_table(ruleset).into_iter().map(|(table, elements)| (table, observed(elements))).collect()
}

/// The tables as `nft` prints them, with the path of their golden file.
const PRINTED: [(&str, &str); 3] = [("ip", "table.nft"), ("ip6", "table6.nft"), ("netdev", "frames.nft")];

fn golden_path(file: &str) -> String {
    format!("{}/tests/golden/{file}", env!("CARGO_MANIFEST_DIR"))
}

/// Compares with a golden file, or writes it.
fn assert_golden(file: &str, text: &str) {
    let path = golden_path(file);
    if std::env::var_os("LANDFALL_WRITE_GOLDENS").is_some() {
        std::fs::write(&path, text).expect("write the golden file");
    }
    let golden = std::fs::read_to_string(&path).expect("a golden file; LANDFALL_WRITE_GOLDENS=1 makes it");
    assert_eq!(text, golden, "LANDFALL_WRITE_GOLDENS=1 rewrites {path}");
}

#[test]
fn nft_prints_the_golden_tables() {
    let namespace = host();
    let ruleset = plan(&everything());
    let applied = engine(&namespace).apply(&ruleset).expect("apply");
    let created =
        by_table(&ruleset).into_iter().map(|(table, elements)| (table, TableOutcome::Created(elements.len())));
    assert_eq!(applied, created.collect::<TableOutcomes>());
    for (family, file) in PRINTED {
        assert_golden(file, &nft(&namespace, &["list", "table", family, "landfall"]));
    }
}

#[test]
fn nft_loads_the_golden_tables() {
    for (family, file) in PRINTED {
        let golden = std::fs::read_to_string(golden_path(file)).expect("a golden file");
        // `nft` 1.0.6 prints the IPv6 rules that add elements, but crashes when it reads them. It reserves too few
        // registers for a key of more than 16 bytes. It also refuses unnamed packet fields as protocol or port, and
        // `gc-interval` of a map. The rest can be loaded.
        let learns = |line: &&str| {
            let long = ["update @", "@connections6 {", "@th,"].into_iter().any(|what| line.contains(what));
            family != "ip" && long && !line.trim_start().starts_with("map")
        };
        let is_loadable = |line: &&str| !learns(line) && !line.contains("gc-interval");
        let loadable = |text: &str| text.lines().filter(is_loadable).collect::<Vec<_>>().join("\n");
        let other = host();
        nft_do(&other, &loadable(&golden));
        assert_eq!(loadable(&nft(&other, &["list", "table", family, "landfall"])), loadable(&golden));
    }
}

/// `make doctor` sends these requests to find a kernel that refuses Landfall's tables. They add one element to each
/// set. Of the rules, they add only those with an expression that no earlier rule of the table has.
#[test]
fn the_engine_writes_the_golden_requests() {
    /// NFT_MSG_NEWRULE, and its attribute NFTA_RULE_EXPRESSIONS.
    const NEW_RULE: (u8, u16) = (6, 4);
    let (mut sets, mut expressions) = (BTreeSet::new(), BTreeSet::new());
    let elements = ruleset_elements(&plan(&everything())).into_iter();
    let first = elements.filter(|(key, _)| key.set().is_none_or(|set| sets.insert((key.table(), set))));
    let mut requests = Requests::default();
    for (table, contents) in table_contents(first) {
        requests.create_table(table, contents);
    }
    let mut text = String::new();
    for (number, message) in requests.messages.iter().enumerate() {
        let rule = message.attributes().find(NEW_RULE.1).filter(|_| message.is_of_kind(NEW_RULE.0));
        let is_new = |one: &Attribute<'_>| expressions.insert((message.family(), one.value.to_vec()));
        if rule.is_some_and(|rule| rule.inner().filter(is_new).count() == 0) {
            continue;
        }
        let mut bytes = Vec::new();
        message.encode(0, &mut bytes);
        text += &requests.describe(number, None);
        for line in bytes.chunks(48) {
            text += "\n  ";
            line.iter().for_each(|byte| text += &format!("{byte:02x}"));
        }
        text += "\n";
    }
    assert_golden("requests.hex", &text);
}

#[test]
fn tables_with_other_comments_on_sets_are_adopted() {
    let (namespace, other) = (host(), host());
    engine(&namespace).apply(&services(10)).expect("apply");
    // Another version has other comments on its sets. `nft` 1.0.6 does not read the interval that it prints.
    let comment = "\t\tcomment \"of another version\"";
    let listed = nft(&namespace, &["list", "table", "ip", "landfall"]);
    let lines = listed.lines().filter(|line| !line.contains("gc-interval"));
    let reworded = lines.map(|line| if line.starts_with("\t\tcomment ") { comment } else { line });
    nft_do(&other, &reworded.collect::<Vec<_>>().join("\n"));
    let mut engine = engine(&other);
    let applied = engine.apply(&services(10)).expect("apply");
    assert_eq!(applied.keys().collect::<Vec<_>>(), [&Table::Link], "{applied:?}");
    // A set with another comment can still be enlarged.
    let applied = engine.apply(&services(1_000)).expect("apply");
    assert!(applied.values().all(makes_room), "{applied:?}");
    let listed = nft(&other, &["--terse", "list", "map", "ip", "landfall", "endpoints"]);
    assert_eq!(listed.contains("of another version"), enlarges_sets(), "{listed}");
    assert!(listed.contains("size 3072"), "{listed}");
}

/// Whether the kernel can enlarge a set: since Linux 6.5.
fn enlarges_sets() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the release");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>());
    let mut next = || numbers.next().expect("two numbers").expect("a number");
    (next(), next()) >= (6, 5)
}

/// Whether full sets of a table were enlarged, or, if the kernel cannot do so, the table was replaced.
fn makes_room(done: &TableOutcome) -> bool {
    match done {
        TableOutcome::Changed(_) => enlarges_sets(),
        TableOutcome::Replaced { because, .. } => !enlarges_sets() && because == "one of its sets is full",
        TableOutcome::Created(_) | TableOutcome::Removed(_) => false,
    }
}

#[test]
fn full_sets_of_all_tables_make_room() {
    let namespace = host();
    let mut running = engine(&namespace);
    // Kernels before 6.5 replace the tables, and others enlarge the sets.
    for many in [services(10), services(1_000)] {
        running.apply(&many).expect("apply");
        assert_eq!(observe(&namespace).0, ours(&many));
    }
    engine(&namespace).apply(&services(3_000)).expect("apply");
    assert_eq!(observe(&namespace).0, ours(&services(3_000)));
}

/// The tables in the kernel and their generation, read by a new engine.
fn observe(namespace: &Namespace) -> (BTreeMap<Table, KernelTable>, u32) {
    engine(namespace).observe().expect("observe")
}

#[test]
fn programmed_tables_are_observed_unchanged() {
    let namespace = host();
    let ruleset = plan(&everything());
    engine(&namespace).apply(&ruleset).expect("apply");
    assert_eq!(observe(&namespace).0, ours(&ruleset));
}

#[test]
fn a_new_engine_keeps_correct_tables() {
    let namespace = host();
    let ruleset = plan(&everything());
    engine(&namespace).apply(&ruleset).expect("apply");
    let before = observe(&namespace);
    let mut next = engine(&namespace);
    assert_eq!(next.apply(&ruleset).expect("apply"), TableOutcomes::new());
    assert_eq!(next.apply(&ruleset).expect("apply again"), TableOutcomes::new());
    assert_eq!(observe(&namespace), before, "with the same generation");
}

#[test]
fn a_new_engine_changes_only_differing_elements() {
    let namespace = host();
    engine(&namespace).apply(&plan(&everything())).expect("apply");
    let mut later = everything();
    later.addresses.remove(&ip("192.0.2.12"));
    let eth1 = LinkName::new("eth1").expect("a name");
    later.lan_links = Arc::new([eth1, LinkName::new("eth0").expect("a name")].into());
    let later = plan(&later);
    let mut applied = engine(&namespace).apply(&later).expect("apply");
    let Some(TableOutcome::Changed(changes)) = applied.remove(&Table::V6) else { panic!("not changed") };
    let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(changes, ["delete bond0.7 in links", "add eth1 in links"]);
    let Some(TableOutcome::Changed(changes)) = applied.remove(&Table::V4) else { panic!("not changed") };
    let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
    let expected = [
        "delete 192.0.2.12 in addresses",
        "delete bond0.7 in links",
        "delete 192.0.2.12:80/TCP in refused",
        "delete 192.0.2.12:80/TCP in traffic",
        "delete 192.0.2.12:80/TCP in begun",
        "add eth1 in links",
    ];
    assert_eq!(changes, expected);
    assert_eq!(observe(&namespace).0, ours(&later));
}

#[test]
fn every_transition_reaches_the_desired_state() {
    let namespace = host();
    let mut engine = engine(&namespace);
    let web = |endpoints: &[&str]| {
        let endpoints = endpoints.iter().map(|address| ready(address, NODE));
        snapshot([service("web").holds("192.0.2.10").port("", Tcp, 80).slice(&[("", Tcp, 8080)], endpoints)])
    };
    let six = |endpoints: &[&str]| {
        let endpoints = endpoints.iter().map(|address| ready(address, NODE));
        snapshot([service("six").holds("2001:db8::10").port("", Tcp, 80).slice(&[("", Tcp, 8080)], endpoints)])
    };
    let states = [
        nothing(),
        everything(),
        web(&["10.244.1.5"]),
        web(&["10.244.1.5", "10.244.1.6"]),
        web(&["10.244.1.6", "10.244.1.7"]),
        web(&[]),
        six(&["2001:db8:244:1::5"]),
        six(&[]),
        nothing(),
        web(&["10.244.1.6"]),
        everything(),
        nothing(),
    ];
    for state in states {
        let ruleset = plan(&state);
        engine.apply(&ruleset).expect("apply");
        assert_eq!(observe(&namespace).0, ours(&ruleset));
        assert_eq!(engine.check().expect("check"), None);
    }
}

#[test]
fn a_damaged_table_is_noticed_and_repaired() {
    let namespace = host();
    let ruleset = plan(&everything());
    let mut engine = engine(&namespace);
    engine.apply(&ruleset).expect("apply");
    let handle = |chain: &str| {
        let listed = nft(&namespace, &["-a", "list", "chain", "ip", "landfall", chain]);
        let rule = listed.lines().find(|line| line.contains("# handle") && !line.contains("{")).expect("a rule");
        rule.rsplit(' ').next().expect("a handle").to_owned()
    };
    for (damage, replaced) in [
        ("flush ruleset".to_owned(), false),
        ("delete element ip landfall addresses { 192.0.2.10 }".to_owned(), false),
        ("add element ip landfall refused { 192.0.2.99 . tcp . 80 : goto refuse }".to_owned(), false),
        ("flush set ip landfall links".to_owned(), false),
        (format!("delete rule ip landfall source handle {}", handle("source")), true),
        ("add rule ip landfall unserved accept".to_owned(), true),
        ("add rule ip landfall sticky-10800-pick-3 accept".to_owned(), true),
        ("flush set ip landfall sources".to_owned(), false),
        ("flush map ip landfall remember".to_owned(), false),
        ("flush chain ip landfall remember-10800".to_owned(), true),
        ("add element ip landfall sources { 192.0.2.11 . tcp . 443 . 203.0.113.0/24 }".to_owned(), false),
        ("add chain ip landfall mine { type filter hook input priority 0; policy drop; }".to_owned(), true),
        ("add set ip landfall mine { type ipv4_addr; }".to_owned(), true),
        ("add table ip landfall { flags dormant; }".to_owned(), true),
        ("add chain ip landfall filter-output { policy drop; }".to_owned(), true),
        ("delete table ip landfall; add table ip landfall".to_owned(), true),
        ("add element ip landfall services { 192.0.2.99 . tcp . 80 : 1:1 }".to_owned(), false),
        ("add element ip landfall ways { 1:1 : drop }".to_owned(), true),
        ("delete chain ip landfall count".to_owned(), false),
        ("flush chain ip landfall count".to_owned(), true),
        ("flush set ip landfall traffic".to_owned(), false),
        ("delete table ip6 landfall".to_owned(), false),
        ("delete element ip6 landfall addresses { 2001:db8::10 }".to_owned(), false),
        ("flush chain ip6 landfall unserved".to_owned(), true),
        ("delete table netdev landfall".to_owned(), false),
        ("flush map netdev landfall slots".to_owned(), false),
        ("delete element netdev landfall spread4 { 192.0.2.10 }".to_owned(), false),
        ("delete chain netdev landfall on-eth0".to_owned(), false),
        ("flush chain netdev landfall on-eth0".to_owned(), true),
        ("add rule netdev landfall send accept".to_owned(), true),
    ] {
        nft_do(&namespace, &damage);
        assert!(engine.check().expect("check").is_some(), "{damage} is not noticed");
        let applied = engine.apply(&ruleset).expect("apply");
        let was_replaced = applied.values().any(|done| matches!(done, TableOutcome::Replaced { .. }));
        assert_eq!(was_replaced, replaced, "{damage}: {applied:?}");
        assert_eq!(observe(&namespace).0, ours(&ruleset), "after {damage}");
        assert_eq!(engine.check().expect("check"), None);
    }
}

/// A ruleset with this number of spread Services.
fn services(count: u32) -> Arc<Ruleset> {
    let described = |n: u32| {
        let [_, _, high, low] = n.to_be_bytes();
        let endpoints = [ready(&format!("10.0.{high}.{low}"), NODE), ready(&format!("10.1.{high}.{low}"), "n2")];
        let lb_ip = format!("198.18.{high}.{low}");
        service(&format!("s{n}")).holds(&lb_ip).port("", Tcp, 80).slice(&[("", Tcp, 8080)], endpoints)
    };
    plan(&Snapshot { links: on_eth0(&["n2"]), ..snapshot((0..count).map(described)) })
}

#[test]
fn sets_are_enlarged_for_more_elements() {
    let size = |namespace: &Namespace, family: &str, set: &str| {
        // Without the elements, which `nft` prints slowly.
        let list = |what| nft(namespace, &["--terse", "list", what]);
        let listed = list("sets") + &list("maps");
        let table = listed.split("table ").filter(|table| table.starts_with(&format!("{family} landfall")));
        let set = table.flat_map(|table| table.split("\n\t")).skip_while(|line| !line.contains(&format!(" {set} {{")));
        let sizes = set.filter_map(|line| line.trim().strip_prefix("size ")?.parse::<u32>().ok());
        sizes.collect::<Vec<_>>().first().copied()
    };
    let (few, many) = (services(10), services(1_000));
    let namespace = host();
    let mut running = engine(&namespace);
    running.apply(&few).expect("apply");
    assert_eq!(size(&namespace, "ip", "endpoints"), Some(768));
    let applied = running.apply(&many).expect("apply");
    assert!(applied.values().all(makes_room), "{applied:?}");
    assert_eq!(observe(&namespace).0, ours(&many));
    assert_eq!(size(&namespace, "ip", "endpoints"), Some(3072));
    assert_eq!(size(&namespace, "netdev", "spread4"), Some(1536));
    assert_eq!(running.check().expect("check"), None, "an enlarged set is no damage");

    // An agent that starts and finds a table that is too small also enlarges it.
    let namespace = host();
    engine(&namespace).apply(&few).expect("apply");
    let applied = engine(&namespace).apply(&many).expect("apply");
    assert!(applied.values().all(makes_room), "{applied:?}");
    assert_eq!(observe(&namespace).0, ours(&many));
}

#[test]
fn tables_of_other_programs_are_not_touched() {
    let namespace = host();
    nft_do(
        &namespace,
        "table ip kube-proxy {
            map services { type ipv4_addr : verdict; elements = { 192.0.2.10 : drop }
            }
            chain nat { type nat hook prerouting priority -100; ip daddr vmap @services
            }
        }
        table inet landfall { chain mine { counter packets 0 bytes 0
            }
        }",
    );
    let before = nft(&namespace, &["list", "ruleset"]);
    let mut engine = engine(&namespace);
    engine.apply(&plan(&everything())).expect("apply");
    let between = nft(&namespace, &["list", "ruleset"]);
    assert!(before.lines().all(|line| between.contains(line)), "{between}");
    let removed = engine.apply(&plan(&nothing())).expect("apply");
    assert_eq!(removed, by_table(&plan(&everything())).into_iter().map(removal).collect());
    assert_eq!(nft(&namespace, &["list", "ruleset"]), before);

    engine.apply(&plan(&everything())).expect("apply");
    assert!(namespace.run(|| remove().expect("remove")), "there was a table");
    assert!(!namespace.run(|| remove().expect("remove again")), "no table is left");
    assert_eq!(nft(&namespace, &["list", "ruleset"]), before);
}

#[test]
fn changes_of_other_programs_are_no_damage() {
    let namespace = host();
    let mut engine = engine(&namespace);
    engine.apply(&plan(&everything())).expect("apply");
    nft_do(&namespace, "add table ip other");
    assert_eq!(engine.check().expect("check"), None);
    let applied = engine.apply(&plan(&snapshot([service("web").holds("192.0.2.10")]))).expect("apply");
    assert!(matches!(applied[&Table::V4], TableOutcome::Changed(_)), "{applied:?}");
}

#[test]
fn a_refusal_names_the_change_and_changes_nothing() {
    let namespace = host();
    let mut engine = engine(&namespace);
    engine.apply(&plan(&everything())).expect("apply");
    // Another program deletes the element that the next change deletes.
    nft_do(&namespace, "delete element ip landfall refused { 192.0.2.12 . tcp . 80 }");
    let before = observe(&namespace);
    let mut later = everything();
    later.addresses.remove(&ip("192.0.2.12"));
    let error = engine.apply(&plan(&later)).expect_err("refused");
    let expected = "the kernel refused to delete 192.0.2.12:80/TCP in refused, nothing changed";
    assert_eq!(error.to_string(), expected);
    assert_eq!(observe(&namespace), before);
    // The next attempt reads the tables first.
    let port = Frontend { address: ip("192.0.2.12"), protocol: Tcp, port: 80 };
    let left = [
        (SetId::Addresses, KeyParts::Address(port.address)),
        (SetId::Traffic, KeyParts::Frontend(port)),
        (SetId::Begun, KeyParts::Frontend(port)),
    ];
    let key = |(set, parts)| ElementKey::In(Table::V4, set, parts);
    let gone = left.map(|left| ElementChange::Delete(key(left), ElementValue::Present)).into();
    assert_eq!(
        engine.apply(&plan(&later)).expect("apply"),
        TableOutcomes::from([(Table::V4, TableOutcome::Changed(gone))])
    );
}

#[test]
fn retired_clients_are_forgotten_among_twenty_thousand() {
    const CLIENTS: usize = 20_000;
    let namespace = host();
    let web = |endpoints: &[&str]| {
        let endpoints = endpoints.iter().map(|address| ready(address, NODE));
        let web = service("web").sticky(10_800).holds("192.0.2.10").port("", Tcp, 80);
        plan(&snapshot([web.slice(&[("", Tcp, 8080)], endpoints)]))
    };
    let (before, after) = (web(&["10.244.1.5", "10.244.1.6"]), web(&["10.244.1.6"]));
    let mut engine = engine(&namespace);
    engine.apply(&before).expect("apply");
    // Every second client has the endpoint that will be removed.
    let clients: Vec<String> = (0..CLIENTS)
        .map(|n| {
            let (high, low) = (n >> 8, n & 255);
            format!("198.18.{high}.{low} . 192.0.2.10 . tcp . 80 timeout 3h : 10.244.1.{} . 8080", 5 + n % 2)
        })
        .collect();
    nft_do(&namespace, &format!("add element ip landfall affinity {{ {} }}", clients.join(", ")));
    engine.apply(&after).expect("apply");
    let start = Instant::now();
    assert_eq!(engine.forget_clients(&retired_clients(Some(&before), &after)).expect("forget"), CLIENTS / 2);
    #[allow(clippy::print_stdout, reason = "`--nocapture` shows it; nothing depends on it")]
    {
        println!("IPv4: forget {} of {CLIENTS} clients: {:.1?}", CLIENTS / 2, start.elapsed());
    }
    let listed = nft(&namespace, &["list", "map", "ip", "landfall", "affinity"]);
    assert_eq!((listed.matches(": 10.244.1.5 .").count(), listed.matches(": 10.244.1.6 .").count()), (0, CLIENTS / 2));
    // Neither elements that rules added nor those that the engine deleted count as damage.
    assert_eq!(engine.check().expect("check"), None);
    assert_eq!(engine.forget_clients(&retired_clients(Some(&before), &after)).expect("forget"), 0);
    assert_eq!(engine.forget_clients(&retired_clients(Some(&after), &after)).expect("nothing to look at"), 0);
}

#[test]
fn ten_thousand_services_are_programmed_at_once() {
    let described = |n: u32, last: u8| {
        let [_, _, high, low] = n.to_be_bytes();
        let endpoints = [ready(&format!("10.{high}.{low}.{last}"), NODE), ready(&format!("10.{high}.{low}.9"), "n2")];
        let lb_ip = format!("198.18.{high}.{low}");
        service(&format!("s{n}")).holds(&lb_ip).port("", Tcp, 80).slice(&[("", Tcp, 8080)], endpoints)
    };
    ten_thousand("IPv4", &[], (Table::V4, 6), described);
    // The second node has a link to this one: frames are spread, by the same table for all.
    ten_thousand("IPv4, spread", &["n2"], (Table::V4, 6), described);
    // A source range changes instead of an endpoint.
    let restricted = |n: u32, last: u8| described(n, 1).only_from(&["203.0.113.0/24", &format!("10.{last}.0.0/16")]);
    ten_thousand("IPv4, each for two ranges", &[], (Table::V4, 2), restricted);
    let described = |n: u32, last: u8| {
        let endpoints = [ready(&format!("fd00::{n:x}:{last}"), NODE), ready(&format!("fd00::{n:x}:9"), "n2")];
        let lb_ip = format!("2001:db8::{n:x}");
        service(&format!("s{n}")).holds(&lb_ip).port("", Tcp, 80).slice(&[("", Tcp, 8080)], endpoints)
    };
    ten_thousand("IPv6", &[], (Table::V6, 6), described);
}

/// Programs 10,000 Services and changes one of them. `described` gets the number of the Service and the value that
/// changes. The change must be in `table`, with this number of elements.
fn ten_thousand(
    what: &str,
    others: &[&str],
    (table, elements): (Table, usize),
    described: impl Fn(u32, u8) -> Described,
) {
    let links = if others.is_empty() { BTreeMap::new() } else { on_eth0(others) };
    let one = Arc::new(Snapshot { links, ..snapshot((0..10_000).map(|n| described(n, 1))) });
    let mut other = Snapshot::clone(&one);
    let changed = snapshot([described(5_000, 2)]);
    other.slices.extend(changed.slices.iter().map(|(key, slices)| (key.clone(), slices.clone())));
    other.services.extend(changed.services.iter().map(|(key, service)| (key.clone(), service.clone())));
    let other = Arc::new(other);
    let namespace = host();
    let mut first = engine(&namespace);
    #[allow(clippy::print_stdout, reason = "`--nocapture` shows them; nothing depends on them")]
    let timed = |step: &str, work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        println!("{what}: {step}: {:.1?}", start.elapsed());
    };
    let mut planner = Planner::default();
    let mut ruleset = None;
    timed("plan", &mut || ruleset = Some(planner.plan(&one)));
    let mut applied = TableOutcomes::new();
    let desired = ruleset.take().expect("planned");
    timed("program 10,000 Services with 2 endpoints each", &mut || applied = first.apply(&desired).expect("apply"));
    assert!(matches!(applied[&table], TableOutcome::Created(_)), "{applied:?}");
    timed("plan a change", &mut || ruleset = Some(planner.plan(&other)));
    let planned_other = ruleset.take().expect("planned");
    timed("apply it", &mut || applied = first.apply(&planned_other).expect("apply"));
    assert!(matches!(&applied[&table], TableOutcome::Changed(changes) if changes.len() == elements), "{applied:?}");
    let mut second = engine(&namespace);
    timed("restart: read and compare", &mut || applied = second.apply(&planned_other).expect("apply"));
    assert_eq!(applied, TableOutcomes::new());
    timed("remove all", &mut || applied = second.apply(&plan(&nothing())).expect("apply"));
    let tables = by_table(&planned_other).into_iter().filter(|(_, elements)| !elements.is_empty());
    assert_eq!(applied, tables.map(removal).collect());
}
