//! The engine against the kernel's nf_tables, and against what `nft` makes of the result.

mod sample;

use std::io::Write;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use crds::Protocol::{Sctp, Tcp, Udp};
use dataplane::diff::Change;
use dataplane::engine::{Applied, Engine, Observed};
use dataplane::nft::element::{Key, Value, elements};
use dataplane::planner::Planner;
use dataplane::ruleset::{Ruleset, ruleset};
use dataplane::{Snapshot, remove};
use netns::Namespace;
use sample::{NODE, nothing, ready, service, snapshot, terminating};

/// Something of everything.
fn everything() -> Snapshot {
    let web = service("web").holds("192.0.2.10").port("http", Tcp, 80).port("dns", Udp, 53).slice(
        &[("http", Tcp, 8080), ("dns", Udp, 5353)],
        [ready("10.244.1.5", NODE), ready("10.244.2.5", "n2"), ready("10.244.2.6", "n2")],
    );
    let local = service("local")
        .holds("192.0.2.11")
        .port("", Tcp, 443)
        .port("media", Sctp, 9)
        .local()
        .slice(&[("", Tcp, 8443)], [ready("10.244.1.6", NODE), ready("10.244.2.7", "n2")])
        .slice(&[("media", Sctp, 9999)], [terminating(ready("10.244.1.6", NODE)), ready("10.244.2.7", "n2")]);
    let empty = service("empty").holds("192.0.2.12").port("", Tcp, 80);
    let pods = ["10.244.1.0/24", "10.245.0.0/25", "10.245.0.128/26"].map(|net| net.parse().expect("a range"));
    Snapshot { pod_ranges: pods.to_vec(), ..snapshot([web, local, empty]) }
}

fn planned(snapshot: &Snapshot) -> Arc<Ruleset> {
    Arc::new(ruleset(snapshot))
}

/// What `nft` prints.
fn nft(namespace: &Namespace, arguments: &[&str]) -> String {
    let output = namespace.command("nft").args(arguments).output().expect("run nft");
    assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Lets `nft` do these lines.
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

#[test]
fn nft_prints_the_table_as_the_golden_file_has_it_and_takes_it_back() {
    let namespace = Namespace::new().expect("a namespace");
    let ruleset = planned(&everything());
    let applied = engine(&namespace).apply(&ruleset).expect("apply");
    assert_eq!(applied, Applied::Created(elements(&ruleset).len()));
    let listed = nft(&namespace, &["list", "table", "ip", "landfall"]);

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/table.nft");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &listed).expect("write the golden file");
    }
    let golden = std::fs::read_to_string(path).expect("tests/golden/table.nft; UPDATE_GOLDEN=1 makes it");
    assert_eq!(listed, golden, "UPDATE_GOLDEN=1 rewrites tests/golden/table.nft");

    let other = Namespace::new().expect("a namespace");
    nft_do(&other, &listed);
    assert_eq!(nft(&other, &["list", "table", "ip", "landfall"]), golden);
}

/// What the kernel has, read by an engine that knows nothing yet.
fn observed(namespace: &Namespace) -> (Observed, u32) {
    engine(namespace).observe().expect("observe")
}

#[test]
fn what_was_programmed_is_read_back_the_same() {
    let namespace = Namespace::new().expect("a namespace");
    let ruleset = planned(&everything());
    engine(&namespace).apply(&ruleset).expect("apply");
    assert_eq!(observed(&namespace).0, Observed::Ours(elements(&ruleset)));
}

#[test]
fn an_agent_that_starts_over_a_good_table_changes_nothing() {
    let namespace = Namespace::new().expect("a namespace");
    let ruleset = planned(&everything());
    engine(&namespace).apply(&ruleset).expect("apply");
    let before = observed(&namespace);
    let mut next = engine(&namespace);
    assert_eq!(next.apply(&ruleset).expect("apply"), Applied::Unchanged);
    assert_eq!(next.apply(&ruleset).expect("apply again"), Applied::Unchanged);
    assert_eq!(observed(&namespace), before, "with the same generation");
}

#[test]
fn an_agent_that_starts_over_an_old_table_changes_only_what_differs() {
    let namespace = Namespace::new().expect("a namespace");
    engine(&namespace).apply(&planned(&everything())).expect("apply");
    let mut later = everything();
    later.addresses.remove(&sample::ip("192.0.2.12"));
    later.pod_ranges = vec!["10.244.1.0/25".parse().expect("a range")];
    let later = planned(&later);
    let Applied::Changed(changes) = engine(&namespace).apply(&later).expect("apply") else { panic!("not changed") };
    let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
    let expected =
        ["delete set pods", "delete 192.0.2.12 in addresses", "delete 192.0.2.12:80/TCP in refused", "add set pods"];
    assert_eq!(changes, expected);
    assert_eq!(observed(&namespace).0, Observed::Ours(elements(&later)));
}

#[test]
fn from_anything_to_anything_the_kernel_has_what_is_desired() {
    let namespace = Namespace::new().expect("a namespace");
    let mut engine = engine(&namespace);
    let web = |endpoints: &[&str]| {
        let endpoints = endpoints.iter().map(|address| ready(address, NODE));
        snapshot([service("web").holds("192.0.2.10").port("", Tcp, 80).slice(&[("", Tcp, 8080)], endpoints)])
    };
    let states = [
        nothing(),
        everything(),
        web(&["10.244.1.5"]),
        web(&["10.244.1.5", "10.244.1.6"]),
        web(&["10.244.1.6", "10.244.1.7"]),
        web(&[]),
        nothing(),
        web(&["10.244.1.6"]),
        everything(),
        nothing(),
    ];
    for state in states {
        let ruleset = planned(&state);
        engine.apply(&ruleset).expect("apply");
        let expected = if state.addresses.is_empty() { Observed::Absent } else { Observed::Ours(elements(&ruleset)) };
        assert_eq!(observed(&namespace).0, expected);
        assert_eq!(engine.check().expect("check"), None);
    }
}

#[test]
fn a_damaged_table_is_noticed_and_repaired() {
    let namespace = Namespace::new().expect("a namespace");
    let ruleset = planned(&everything());
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
        ("add element ip landfall refused { 192.0.2.99 . tcp . 80 }".to_owned(), false),
        ("flush set ip landfall pods".to_owned(), false),
        (format!("delete rule ip landfall source handle {}", handle("source")), true),
        ("add rule ip landfall unserved accept".to_owned(), true),
        ("add rule ip landfall pick-3 accept".to_owned(), true),
        ("add chain ip landfall mine { type filter hook input priority 0; policy drop; }".to_owned(), true),
        ("add set ip landfall mine { type ipv4_addr; }".to_owned(), true),
        ("add table ip landfall { flags dormant; }".to_owned(), true),
        ("add chain ip landfall filter-output { policy drop; }".to_owned(), true),
        ("delete table ip landfall; add table ip landfall".to_owned(), true),
        ("add element ip landfall services { 192.0.2.99 . tcp . 80 : drop }".to_owned(), true),
    ] {
        nft_do(&namespace, &damage);
        assert!(engine.check().expect("check").is_some(), "{damage} is not noticed");
        let applied = engine.apply(&ruleset).expect("apply");
        assert_eq!(matches!(applied, Applied::Replaced { .. }), replaced, "{damage}: {applied:?}");
        assert_eq!(observed(&namespace).0, Observed::Ours(elements(&ruleset)), "after {damage}");
        assert_eq!(engine.check().expect("check"), None);
    }
}

#[test]
fn tables_of_others_are_not_touched() {
    let namespace = Namespace::new().expect("a namespace");
    nft_do(
        &namespace,
        "table ip kube-proxy {
            map services { type ipv4_addr : verdict; elements = { 192.0.2.10 : drop }
            }
            chain nat { type nat hook prerouting priority -100; ip daddr vmap @services
            }
        }
        table ip6 landfall { chain mine { counter packets 0 bytes 0
            }
        }",
    );
    let before = nft(&namespace, &["list", "ruleset"]);
    let mut engine = engine(&namespace);
    engine.apply(&planned(&everything())).expect("apply");
    let between = nft(&namespace, &["list", "ruleset"]);
    assert!(before.lines().all(|line| between.contains(line)), "{between}");
    assert_eq!(engine.apply(&planned(&nothing())).expect("apply"), Applied::Removed);
    assert_eq!(nft(&namespace, &["list", "ruleset"]), before);

    engine.apply(&planned(&everything())).expect("apply");
    assert!(namespace.run(|| remove().expect("remove")), "there was a table");
    assert!(!namespace.run(|| remove().expect("remove again")), "there is none any more");
    assert_eq!(nft(&namespace, &["list", "ruleset"]), before);
}

#[test]
fn changes_of_others_are_not_taken_for_damage() {
    let namespace = Namespace::new().expect("a namespace");
    let mut engine = engine(&namespace);
    engine.apply(&planned(&everything())).expect("apply");
    nft_do(&namespace, "add table ip other");
    assert_eq!(engine.check().expect("check"), None);
    let applied = engine.apply(&planned(&snapshot([service("web").holds("192.0.2.10")]))).expect("apply");
    assert!(matches!(applied, Applied::Changed(_)), "{applied:?}");
}

#[test]
fn a_refusal_names_what_the_kernel_refuses_and_changes_nothing() {
    let namespace = Namespace::new().expect("a namespace");
    let mut engine = engine(&namespace);
    engine.apply(&planned(&everything())).expect("apply");
    // Behind its back, what the next change would delete is deleted.
    nft_do(&namespace, "delete element ip landfall refused { 192.0.2.12 . tcp . 80 }");
    let before = observed(&namespace);
    let mut later = everything();
    later.addresses.remove(&sample::ip("192.0.2.12"));
    let error = engine.apply(&planned(&later)).expect_err("refused");
    let expected = "the kernel refused to delete 192.0.2.12:80/TCP in refused, nothing changed";
    assert_eq!(error.to_string(), expected);
    assert_eq!(observed(&namespace), before);
    // The next attempt looks first.
    let address = Change::Delete(Key::Address("192.0.2.12".parse().expect("v4")), Value::Present);
    assert_eq!(engine.apply(&planned(&later)).expect("apply"), Applied::Changed(vec![address]));
}

#[test]
fn ten_thousand_services_are_programmed_in_one_go() {
    let described = |n: u32, last: u8| {
        let [_, _, high, low] = n.to_be_bytes();
        let endpoints = [ready(&format!("10.{high}.{low}.{last}"), NODE), ready(&format!("10.{high}.{low}.9"), "n2")];
        let lb_ip = format!("198.18.{high}.{low}");
        service(&format!("s{n}")).holds(&lb_ip).port("", Tcp, 80).slice(&[("", Tcp, 8080)], endpoints)
    };
    let one = Arc::new(snapshot((0..10_000).map(|n| described(n, 1))));
    let mut other = Snapshot::clone(&one);
    other.slices.extend(snapshot([described(5_000, 2)]).slices);
    let other = Arc::new(other);
    let namespace = Namespace::new().expect("a namespace");
    let mut first = engine(&namespace);
    #[allow(clippy::print_stdout, reason = "`--nocapture` shows them; nothing depends on them")]
    let timed = |what: &str, work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        println!("{what}: {:.1?}", start.elapsed());
    };
    let mut planner = Planner::default();
    let mut ruleset = None;
    timed("plan", &mut || ruleset = Some(planner.plan(&one)));
    let mut applied = None;
    let desired = ruleset.take().expect("planned");
    timed("program 10,000 Services with 2 endpoints each", &mut || applied = Some(first.apply(&desired)));
    assert!(matches!(applied, Some(Ok(Applied::Created(_)))), "{applied:?}");
    timed("plan a change of one endpoint", &mut || ruleset = Some(planner.plan(&other)));
    let planned_other = ruleset.take().expect("planned");
    timed("apply it", &mut || applied = Some(first.apply(&planned_other)));
    assert!(matches!(&applied, Some(Ok(Applied::Changed(changes))) if changes.len() == 6), "{applied:?}");
    let mut second = engine(&namespace);
    timed("restart: read and compare", &mut || applied = Some(second.apply(&planned_other)));
    assert!(matches!(applied, Some(Ok(Applied::Unchanged))), "{applied:?}");
    timed("remove all", &mut || applied = Some(second.apply(&planned(&nothing()))));
    assert!(matches!(applied, Some(Ok(Applied::Removed))), "{applied:?}");
}
