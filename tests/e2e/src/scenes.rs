//! Plays scenes one after the other on one cluster.
//!
//! A cluster takes longer to come up than most scenes take, so scenes share one. A scene that fails does not stop the
//! next ones; [`Scenes::play`] reports all failures. Three variables select the scenes:
//!
//! | variable | effect |
//! |---|---|
//! | `LANDFALL_SCENE=NAME` | only this scene is played |
//! | `LANDFALL_REPEAT=N` | the scenes are played N times |
//! | `LANDFALL_SHUFFLE=random` | their order is random; the seed is printed, and `LANDFALL_SHUFFLE=SEED` repeats it |

use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use lab::wait_until;
use model::stable_hash::splitmix64;
use observer::{Fault, FoundBreaches, Invariant};

use crate::scene::Scene;
use crate::world::{SOON, World};

/// The greatest number of failed scenes of a test for which logs and objects of the cluster are collected.
const MAX_EVIDENCE: usize = 2;

/// A scene as a function without a type of its own.
type Play = Box<dyn for<'a> Fn(&'a Scene<'a>) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>>;

/// The scenes that are played on one cluster.
pub struct Scenes<'a> {
    world: &'a World,
    listed: Vec<ListedScene>,
}

struct ListedScene {
    name: &'static str,
    /// Whether it leaves the cluster damaged.
    is_last: bool,
    /// The known defect that it shows. A scene with a defect passes only if it breaches the invariant of the defect.
    defect: Option<KnownDefect>,
    play: Play,
}

/// A defect that is not mended yet, which a scene shows.
#[derive(Clone, Copy, Debug)]
struct KnownDefect {
    /// The invariant that the defect breaches.
    invariant: Invariant,
    /// One sentence why.
    reason: &'static str,
}

/// Which scenes are played, how many times, and in which order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Selection {
    only: Option<String>,
    repetitions: Option<u8>,
    seed: Option<u64>,
}

struct FailedScene {
    name: &'static str,
    error: anyhow::Error,
}

impl<'a> Scenes<'a> {
    /// Starts with no scene, on this cluster.
    pub fn new(world: &'a World) -> Self {
        Self { world, listed: Vec::new() }
    }

    /// Adds a scene: a function whose name is a sentence about its subject.
    pub fn add<S: AsyncFn(&Scene<'_>) -> Result<()> + Copy + 'static>(&mut self, scene: S) {
        self.list(scene, false, None);
    }

    /// Adds a scene that shows a defect of Landfall: it passes only while the observer finds breaches of this
    /// invariant, and no other failure. When the defect is mended the scene fails: then add it with [`Scenes::add`].
    ///
    /// The breach must be certain. If the scene only sometimes shows it, declare [`Fault::known_defect`] there instead.
    pub fn add_known_defect<S>(&mut self, scene: S, invariant: Invariant, reason: &'static str)
    where
        S: AsyncFn(&Scene<'_>) -> Result<()> + Copy + 'static,
    {
        self.list(scene, false, Some(KnownDefect { invariant, reason }));
    }

    /// Adds a scene that leaves the cluster damaged: it is played once, after all others.
    pub fn add_last<S: AsyncFn(&Scene<'_>) -> Result<()> + Copy + 'static>(&mut self, scene: S) {
        self.list(scene, true, None);
    }

    fn list<S>(&mut self, scene: S, is_last: bool, defect: Option<KnownDefect>)
    where
        S: AsyncFn(&Scene<'_>) -> Result<()> + Copy + 'static,
    {
        let name = std::any::type_name::<S>().rsplit("::").next().unwrap_or_default();
        let play: Play = Box::new(move |context| Box::pin(async move { scene(context).await }));
        self.listed.push(ListedScene { name, is_last, defect, play });
    }

    /// Plays the selected scenes. Returns an error if one failed, or if the selected scene does not exist.
    pub async fn play(self) -> Result<()> {
        let selection = Selection::parse(|name| std::env::var(name).ok(), random_seed)?;
        if let Some(seed) = selection.seed {
            eprintln!("shuffled with LANDFALL_SHUFFLE={seed}");
        }
        let scenes: Vec<_> = self.listed.iter().map(|scene| (scene.name, scene.is_last)).collect();
        let order = selection.order(&scenes)?;
        let shared = deployments(self.world).await?;
        let mut failed: Vec<FailedScene> = Vec::new();
        for (index, round) in &order {
            let listed = &self.listed[*index];
            let scene = Scene { world: self.world, number: u8::try_from(index + 1)?, round: *round };
            if let Err(error) = self.play_one(listed, &scene, &shared, failed.len()).await {
                failed.push(FailedScene { name: listed.name, error });
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        // `tests/ci` reads this line: it runs these scenes once more, alone.
        let names: BTreeSet<_> = failed.iter().map(|scene| scene.name).collect();
        eprintln!("failed scenes: {}", names.into_iter().collect::<Vec<_>>().join(" "));
        let errors: Vec<_> = failed.iter().map(|scene| format!("{}: {:#}", scene.name, scene.error)).collect();
        bail!("{} of {} scenes failed:\n{}", errors.len(), order.len(), errors.join("\n"))
    }

    /// Plays one scene, and removes its objects. `shared` are the Deployments that all scenes use, and `failed` counts
    /// earlier failures.
    async fn play_one(
        &self,
        listed: &ListedScene,
        scene: &Scene<'_>,
        shared: &BTreeSet<String>,
        failed: usize,
    ) -> Result<()> {
        let (name, start) = (listed.name, Instant::now());
        let result = async {
            scene.create_namespace("", &[]).await?;
            (listed.play)(scene).await
        }
        .await;
        let result = self.world.add_breaches(result).await;
        let result = match listed.defect {
            Some(defect) => self.expect_defect(name, defect, result),
            None => result,
        };
        let has_failed = result.is_err();
        self.keep_evidence(name, has_failed, failed);
        let mut removed = scene.remove_objects().await;
        // A damaged cluster may be unable to remove pods.
        if !listed.is_last {
            removed = removed.and(remove_deployments(self.world, shared).await);
        }
        let removed = removed.context("remove the objects of the scene");
        let result = self.world.add_breaches(result.and(removed)).await;
        self.keep_evidence(name, !has_failed && result.is_err(), failed);
        self.world.end_faults();
        print_result(name, start, &result);
        result
    }

    /// The result of a scene that shows a defect: fails unless it breached the invariant. Permits further breaches of
    /// the same subjects until the end of the scene.
    fn expect_defect(&self, scene: &str, defect: KnownDefect, result: Result<()>) -> Result<()> {
        let breaches = defect.find_breaches(result)?.0;
        eprintln!("scene {scene}: known defect: {}", defect.reason);
        for breach in breaches {
            self.world.declare(Fault::known_defect(breach.invariant, breach.subject, defect.reason));
        }
        Ok(())
    }

    /// Collects the state of the cluster if `is_needed`, but not if [`MAX_EVIDENCE`] scenes have failed before.
    fn keep_evidence(&self, scene: &str, is_needed: bool, failed: usize) {
        if is_needed && failed < MAX_EVIDENCE {
            self.world.keep_evidence(scene);
        }
    }
}

impl KnownDefect {
    /// The breaches in the result of a scene. Fails if there are none, or if anything else has failed.
    fn find_breaches(self, result: Result<()>) -> Result<FoundBreaches> {
        let Self { invariant, reason } = self;
        let Err(error) = result else { bail!("breached no {invariant}: is this defect mended? {reason}") };
        let is_expected = |found: &FoundBreaches| found.0.iter().all(|breach| breach.invariant == invariant);
        match error.downcast::<FoundBreaches>() {
            Ok(found) if is_expected(&found) => Ok(found),
            Ok(other) => Err(other).with_context(|| format!("not only {invariant}, as expected")),
            Err(error) => Err(error),
        }
    }
}

impl Selection {
    /// Reads the variables. `random` returns a new seed.
    fn parse(variable: impl Fn(&str) -> Option<String>, random: impl FnOnce() -> u64) -> Result<Self> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let number = |text: String| text.parse::<u64>().with_context(|| format!("{text:?} is no number"));
        let repetitions = variable("LANDFALL_REPEAT").map(number).transpose().context("LANDFALL_REPEAT")?;
        let seed = match variable("LANDFALL_SHUFFLE") {
            Some(text) if text == "random" => Some(random()),
            text => text.map(number).transpose().context("LANDFALL_SHUFFLE")?,
        };
        let repetitions = repetitions.map(u8::try_from).transpose().context("LANDFALL_REPEAT")?;
        Ok(Self { only: variable("LANDFALL_SCENE"), repetitions, seed })
    }

    /// The scenes to play, as index and round. `scenes` are their names, and whether each leaves the cluster damaged.
    fn order(&self, scenes: &[(&str, bool)]) -> Result<Vec<(usize, u8)>> {
        let is_selected = |name: &str| self.only.as_ref().is_none_or(|only| only == name);
        let selected = |last: bool| {
            let all = scenes.iter().enumerate();
            all.filter(move |(_, (name, is_last))| *is_last == last && is_selected(name)).map(|(index, _)| index)
        };
        let mut random = self.seed.unwrap_or_default();
        let mut order = Vec::new();
        for round in 0..self.repetitions.unwrap_or(1) {
            let mut indices: Vec<_> = selected(false).collect();
            if self.seed.is_some() {
                shuffle(&mut indices, &mut random);
            }
            order.extend(indices.into_iter().map(|index| (index, round)));
        }
        order.extend(selected(true).map(|index| (index, 0)));
        ensure!(!order.is_empty(), "this test has no scene {:?}", self.only.as_deref().unwrap_or_default());
        Ok(order)
    }
}

/// Prints the line about a scene that began at `start`. `tests/ci` reads these lines.
pub fn print_result(name: &str, start: Instant, result: &Result<()>) {
    let seconds = start.elapsed().as_secs_f64();
    match result {
        Ok(()) => eprintln!("scene {name} ... ok ({seconds:.1} s)"),
        Err(error) => eprintln!("scene {name} ... FAILED ({seconds:.1} s): {error:#}"),
    }
}

fn random_seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Short enough to type.
    u64::from(now.subsec_nanos())
}

/// Shuffles with Fisher and Yates' algorithm.
fn shuffle(indices: &mut [usize], random: &mut u64) {
    for last in (1..indices.len()).rev() {
        *random = splitmix64(*random);
        let other = *random % (last as u64 + 1);
        indices.swap(last, other as usize);
    }
}

/// The names of the Deployments in the default namespace.
async fn deployments(world: &World) -> Result<BTreeSet<String>> {
    let all: Api<Deployment> = Api::default_namespaced(world.client.clone());
    Ok(all.list(&ListParams::default()).await?.iter().map(ResourceExt::name_any).collect())
}

/// Removes the Deployments in the default namespace except these, and waits until their pods have ended.
async fn remove_deployments(world: &World, except: &BTreeSet<String>) -> Result<()> {
    let all: Api<Deployment> = Api::default_namespaced(world.client.clone());
    for name in deployments(world).await?.difference(except) {
        all.delete(name, &DeleteParams::background()).await.with_context(|| format!("delete Deployment {name}"))?;
    }
    let pods: Api<Pod> = Api::default_namespaced(world.client.clone());
    wait_until(SOON, "the scene's pods to end", async || {
        let mut left = pods.list(&ListParams::default()).await?.items;
        left.retain(|pod| !pod.labels().get("app").is_some_and(|app| except.contains(app)));
        ensure!(left.is_empty(), "{:?}", left.iter().map(ResourceExt::name_any).collect::<Vec<_>>());
        Ok(())
    })
    .await
}

/// Passes only if this check fails, because of a defect of Landfall that the observer does not show. When the defect is
/// mended this fails: then use the check alone.
///
/// # Errors
/// If the check passes.
pub fn expect_known_defect(check: Result<()>, defect: &str) -> Result<()> {
    let Err(error) = check else { bail!("is this defect mended? {defect}") };
    eprintln!("  known defect: {defect} ({error:#})");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use observer::Subject;
    use observer::breach::Breach;

    use super::*;

    const SCENES: [(&str, bool); 4] = [("a", false), ("b", false), ("damages", true), ("c", false)];

    fn selection(only: Option<&str>, repetitions: Option<u8>, seed: Option<u64>) -> Selection {
        Selection { only: only.map(ToOwned::to_owned), repetitions, seed }
    }

    #[test]
    fn variables_select_repeat_and_shuffle() {
        for (variables, expected) in [
            (&[][..], Some(selection(None, None, None))),
            (&[("LANDFALL_SCENE", "a"), ("LANDFALL_REPEAT", "")], Some(selection(Some("a"), None, None))),
            (&[("LANDFALL_REPEAT", "3"), ("LANDFALL_SHUFFLE", "7")], Some(selection(None, Some(3), Some(7)))),
            (&[("LANDFALL_SHUFFLE", "random")], Some(selection(None, None, Some(42)))),
            (&[("LANDFALL_SHUFFLE", "yes")], None),
            (&[("LANDFALL_REPEAT", "256")], None),
        ] {
            let variable = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, it)| (*it).to_owned());
            assert_eq!(Selection::parse(variable, || 42).ok(), expected, "{variables:?}");
        }
    }

    #[test]
    fn a_known_defect_is_a_breach_of_one_invariant() {
        let defect = KnownDefect { invariant: Invariant::I6, reason: "a row of this table" };
        let breach = |invariant| Breach {
            at: Duration::ZERO,
            invariant,
            subject: Subject::Cluster,
            text: "is broken".to_owned(),
        };
        let found = |invariants: &[Invariant]| {
            let breaches: Vec<_> = invariants.iter().map(|invariant| breach(*invariant)).collect();
            Err(FoundBreaches(breaches).into())
        };
        for (case, result, expected) in [
            ("mended", Ok(()), Err("breached no I6: is this defect mended? a row of this table")),
            ("the defect", found(&[Invariant::I6, Invariant::I6]), Ok(2)),
            ("another breach as well", found(&[Invariant::I6, Invariant::I8]), Err("not only I6, as expected")),
            ("another failure", Err(anyhow::anyhow!("no answer")), Err("no answer")),
        ] {
            let seen = defect.find_breaches(result).map(|found| found.0.len()).map_err(|error| error.to_string());
            assert_eq!(seen, expected.map_err(ToOwned::to_owned), "{case}");
        }
    }

    #[test]
    fn a_damaging_scene_is_played_once_and_last() {
        for (selection, expected) in [
            (selection(None, None, None), Some(vec![(0, 0), (1, 0), (3, 0), (2, 0)])),
            (selection(Some("b"), Some(2), None), Some(vec![(1, 0), (1, 1)])),
            (selection(Some("damages"), Some(2), None), Some(vec![(2, 0)])),
            (selection(None, Some(2), None), Some(vec![(0, 0), (1, 0), (3, 0), (0, 1), (1, 1), (3, 1), (2, 0)])),
            (selection(Some("none"), None, None), None),
        ] {
            assert_eq!(selection.order(&SCENES).ok(), expected, "{selection:?}");
        }
    }

    #[test]
    fn a_seed_repeats_its_order_and_loses_no_scene() {
        let mut orders = BTreeSet::new();
        for seed in 0..100 {
            let order = selection(None, None, Some(seed)).order(&SCENES).expect("an order");
            assert_eq!(order, selection(None, None, Some(seed)).order(&SCENES).expect("an order"));
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!((sorted.len(), sorted[2], order[3]), (4, (2, 0), (2, 0)), "{order:?}");
            orders.insert(order);
        }
        assert_eq!(orders.len(), 6, "three scenes have six orders");
    }
}
