//! The finalizer: other providers use the same one.

use super::*;
use crds::condition::{ConditionStatus, DesiredCondition};
use crds::service::FINALIZER;

#[test]
fn status_of_another_provider_stays_on_a_refused_service() {
    let mut theirs = service("web", 5);
    theirs.ingress = shows("198.51.100.1");
    theirs.finalizers = vec![FINALIZER.into()];
    let mut world = World::new([], [theirs.clone()]);
    world.settle();
    let seen = world.snapshot.services[&theirs.key].clone();
    assert_eq!((&seen.ingress, &seen.finalizers), (&theirs.ingress, &theirs.finalizers));
    assert_eq!(seen.conditions[0].reason, "NoPool");
    // It also stays when Landfall is no longer the default provider.
    world.snapshot.default_class = false;
    world.settle();
    let seen = &world.snapshot.services[&theirs.key];
    assert_eq!((&seen.ingress, &seen.finalizers), (&theirs.ingress, &theirs.finalizers));
    assert!(seen.conditions.is_empty());
}

#[test]
fn release_needs_no_condition_to_find_its_finalizer() {
    type Edit = fn(&mut Service);
    let edits: [Edit; 2] =
        [|web| web.conditions[0].message = "no IPAddressPool gone exists".into(), |web| web.conditions.clear()];
    for edit in edits {
        let mut world = World::new([lan()], [service("web", 5)]);
        world.settle();
        world.edit("web", |web| request_of(web).pool = Some("gone".into()));
        world.settle();
        assert_eq!(ingress(&world, "web"), ["192.0.2.10"], "the refused Service keeps its address");
        // Another client edits the conditions, the type changes, and a crash follows the deletion of the record.
        world.edit("web", edit);
        world.edit("web", |web| web.is_load_balancer = false);
        world.snapshot.records.clear();
        world.settle();
        assert_eq!(world.view("web"), ServiceView::nothing());
    }
}

#[test]
fn message_that_imitates_ours_claims_nothing_of_another_provider() {
    for default_class in [true, false] {
        let mut theirs = service("web", 5);
        theirs.ingress = shows("198.51.100.1");
        theirs.finalizers = vec![FINALIZER.into()];
        let message = "no IPAddressPool gone exists; until then, the Service keeps 192.0.2.10";
        let forged = DesiredCondition::new(ALLOCATED, ConditionStatus::False, "PoolNotFound", message.into(), None);
        theirs.conditions = forged.set_in(&[], at_second(1));
        let mut world = World::new([], [theirs.clone()]);
        world.snapshot.default_class = default_class;
        world.settle();
        let seen = world.service("web");
        assert_eq!((&seen.ingress, &seen.finalizers), (&theirs.ingress, &theirs.finalizers));
        assert_eq!(reason(&world, "web"), if default_class { "False NoPool" } else { "" });
    }
}
