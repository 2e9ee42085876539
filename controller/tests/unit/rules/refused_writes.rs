//! Writes that the API server refuses for a reason that lasts.

use super::*;
use crate::live::Live;

const NO: &str = "admission webhook \"example.com\" denied the request: no";

fn nothing(_: &Effect) -> Option<&'static str> {
    None
}

fn creations(effect: &Effect) -> Option<&'static str> {
    matches!(effect, Effect::Create { .. }).then_some(NO)
}

fn deletions(effect: &Effect) -> Option<&'static str> {
    matches!(effect, Effect::Delete { .. }).then_some(NO)
}

fn changes_of_records(effect: &Effect) -> Option<&'static str> {
    matches!(effect, Effect::PatchRecord(_)).then_some(NO)
}

fn statuses(effect: &Effect) -> Option<&'static str> {
    let is_status = matches!(effect, Effect::PatchService(_) | Effect::PatchConditions(_) | Effect::ReportRefusal(_));
    is_status.then_some(NO)
}

/// Turns until nothing is left to do.
fn finish(live: &mut Live, world: &mut World) {
    while !live.take_turn(world, nothing).is_empty() {}
}

/// Five turns, without the effects about pools.
fn turns(live: &mut Live, world: &mut World, refuse: fn(&Effect) -> Option<&'static str>) -> Vec<Vec<String>> {
    let mut turn = || {
        let mut log = live.take_turn(world, refuse);
        log.retain(|entry| entry != "patch lan");
        log
    };
    std::iter::repeat_with(&mut turn).take(5).collect()
}

fn events(world: &World, reason: &str) -> Vec<(String, String)> {
    let of_reason = world.events.iter().filter(|event| event.reason == reason);
    let object = |event: &effect::Event| {
        let regarding = event.regarding.clone();
        format!("{} {}", regarding.kind.unwrap_or_default(), regarding.name.unwrap_or_default())
    };
    of_reason.map(|event| (object(event), event.message.clone())).collect()
}

#[test]
fn refused_creation_is_reported_once_and_repeated() {
    let mut world = World::new([lan()], [service("web", 5)]);
    let mut live = Live::new(1);
    let attempt = vec!["create 192.0.2.10 (refused)".to_owned()];
    let report = vec!["event WriteRefused".to_owned(), "report a refusal to default/web".into()];
    let expected = [attempt.clone(), report, attempt.clone(), attempt.clone(), attempt];
    assert_eq!(turns(&mut live, &mut world, creations), expected);
    let message = format!(
        "the API server refuses to create LoadBalancerIP 192.0.2.10, and the controller repeats the request: {NO}"
    );
    let condition = Some(format!("False WriteRefused: {message}"));
    assert_eq!(world.view("web"), ServiceView { condition, ..ServiceView::nothing() });
    assert_eq!(events(&world, "WriteRefused"), [("Service web".to_owned(), message)]);
    // The address stays promised: another Service gets the next one, if the API server permits that.
    world.snapshot.services.insert(World::key("other"), Arc::new(service("other", 6)));
    let only_first = |effect: &Effect| creations(effect).filter(|_| effect.lb_ip() == Some(ip("192.0.2.10")));
    live.take_turn(&mut world, only_first);
    assert_eq!(world.view("other"), ServiceView::has("192.0.2.11", "lan"));
    finish(&mut live, &mut world);
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.10", "lan"));
    assert_eq!(events(&world, "IPAllocated").len(), 2);
}

#[test]
fn refusal_ends_when_the_write_is_no_longer_needed() {
    let mut world = World::new([lan()], [service("web", 5)]);
    let mut live = Live::new(1);
    finish(&mut live, &mut world);
    world.edit("web", |web| web.request = request_for("192.0.2.12"));
    turns(&mut live, &mut world, creations);
    let refused = format!(
        "False WriteRefused: the API server refuses to create LoadBalancerIP 192.0.2.12, and the controller repeats the \
         request: {NO}; until then, the Service keeps 192.0.2.10"
    );
    assert_eq!(world.view("web"), ServiceView { condition: Some(refused), ..ServiceView::has("192.0.2.10", "lan") });
    world.edit("web", |web| web.request = request_for("192.0.2.10"));
    finish(&mut live, &mut world);
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.10", "lan"));
}

#[test]
fn changing_texts_are_reported_at_long_intervals() {
    let mut world = World::new([lan()], [service("web", 5)]);
    let mut live = Live::new(1);
    let texts = ["one", "two", "three"];
    let mut reports = Vec::new();
    for second in 0..=400 {
        world.snapshot.now = at_second(second);
        let text = texts[usize::try_from(second).expect("small") % 3];
        let log = live.take_turn(&mut world, |effect| creations(effect).map(|_| text));
        reports.extend(log.iter().any(|entry| entry.starts_with("report")).then_some(second));
    }
    assert_eq!(reports, [1, 302]);
}

#[test]
fn refused_status_is_an_event_and_no_write() {
    let mut world = World::new([lan()], [service("web", 5)]);
    let mut live = Live::new(1);
    let all = |effect: &Effect| creations(effect).or(statuses(effect));
    let log = turns(&mut live, &mut world, all);
    let attempt = vec!["create 192.0.2.10 (refused)".to_owned()];
    let report = ["event WriteRefused", "report a refusal to default/web (refused)", "event WriteRefused"];
    assert_eq!(log[1], report);
    assert_eq!([&log[0], &log[2], &log[3], &log[4]], [&attempt; 4]);
    // With the record, the Service has an address that its status does not show.
    let log = turns(&mut live, &mut world, statuses);
    assert_eq!(log[1..], vec![vec!["patch default/web (refused)".to_owned()]; 4]);
    let message = format!(
        "the API server refuses to change the status of this Service, and the controller repeats the request: {NO}"
    );
    let of_status: Vec<_> = events(&world, "WriteRefused").into_iter().filter(|(_, text)| *text == message).collect();
    assert_eq!(of_status, [("Service web".to_owned(), message)]);
    finish(&mut live, &mut world);
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.10", "lan"));
}

#[test]
fn refused_release_of_a_deleted_service_is_reported() {
    let mut world = World::new([lan()], [service("web", 5)]);
    let mut live = Live::new(1);
    finish(&mut live, &mut world);
    world.delete("web");
    turns(&mut live, &mut world, deletions);
    let refused = format!(
        "False WriteRefused: the API server refuses to delete LoadBalancerIP 192.0.2.10, and the controller repeats the \
         request: {NO}; until then, the Service keeps 192.0.2.10"
    );
    assert_eq!(world.view("web"), ServiceView { condition: Some(refused), ..ServiceView::has("192.0.2.10", "lan") });
    finish(&mut live, &mut world);
    assert_eq!((world.snapshot.services.len(), world.snapshot.records.len()), (0, 0));
}

#[test]
fn refused_withdrawal_of_a_former_address_is_an_event() {
    let mut world = World::new([lan()], [service("web", 5)]);
    let mut live = Live::new(1);
    finish(&mut live, &mut world);
    world.edit("web", |web| web.request = request_for("192.0.2.12"));
    turns(&mut live, &mut world, deletions);
    assert_eq!(world.view("web").condition.as_deref(), Some("True Allocated: 192.0.2.12 from pool lan"));
    let message = format!(
        "the API server refuses to delete LoadBalancerIP 192.0.2.10, and the controller repeats the request: {NO}"
    );
    assert_eq!(events(&world, "WriteRefused"), [("Service web".to_owned(), message)]);
    finish(&mut live, &mut world);
    assert_eq!(world.view("web"), ServiceView::has("192.0.2.12", "lan"));
}

#[test]
fn service_that_waits_for_a_refused_record_reports_it() {
    let mut world = World::new([lan()], [sharing("web", 5, 80)]);
    let mut live = Live::new(1);
    finish(&mut live, &mut world);
    world.snapshot.services.insert(World::key("joins"), Arc::new(sharing("joins", 6, 81)));
    turns(&mut live, &mut world, changes_of_records);
    let message = format!(
        "the API server refuses to change LoadBalancerIP 192.0.2.10, and the controller repeats the request: {NO}"
    );
    let condition = Some(format!("False WriteRefused: {message}"));
    assert_eq!(world.view("joins"), ServiceView { condition, ..ServiceView::nothing() });
    let expected = ["LoadBalancerIP 192.0.2.10", "Service joins"].map(|object| (object.to_owned(), message.clone()));
    assert_eq!(events(&world, "WriteRefused"), expected);
    finish(&mut live, &mut world);
    assert_eq!(world.view("joins"), ServiceView::has("192.0.2.10", "lan"));
}

#[test]
fn refused_status_of_a_pool_is_an_event_of_the_pool() {
    let mut world = World::new([lan()], []);
    let mut live = Live::new(1);
    let of_pools = |effect: &Effect| matches!(effect, Effect::PatchPool(_)).then_some(NO);
    assert_eq!(live.take_turn(&mut world, of_pools), ["patch lan (refused)", "event WriteRefused"]);
    assert_eq!(live.take_turn(&mut world, of_pools), ["patch lan (refused)"]);
    let message = format!(
        "the API server refuses to change the status of this IPAddressPool, and the controller repeats the request: {NO}"
    );
    assert_eq!(events(&world, "WriteRefused"), [("IPAddressPool lan".to_owned(), message)]);
}
