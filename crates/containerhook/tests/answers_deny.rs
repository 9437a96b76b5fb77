//! A container is refused at each of the four points: what the engine's user sees, and that nothing is left behind.
//!
//! `docs/answers.md` is the table of what these tests show. runc and crun by themselves are in `deny.rs`, youki is here.

#[path = "answers/mod.rs"]
mod answers;
mod support;

use answers::{Places, REASON, Refuser, done};
use anyhow::{Context as _, Result, ensure};
use containerhook::{ContainerEvent, EventKind, Record, Verdict};
use support::{LIMIT, Listener, PATIENCE, only};
use testkit::{
    Bundle, Containerd, Cri, Dockerd, Family, Leftovers, Output, Pod, Podman, Process, Runtime, need,
    unique_id, wait_until, watchdog,
};

use EventKind::{Created, Deleted, Exec, ExecStopped, Killed, PreCreate, Started, Stopped};

/// What the user of an engine sees of a refusal: an exit code, and words that are all in what the engine prints. Where an
/// engine does something at the same time, there are more ways than one.
struct Seen(&'static [(i32, &'static [&'static str])]);

impl Seen {
    fn check(&self, output: &Output) -> Result<()> {
        eprintln!("exit {:?}: {:?} {:?}", output.code(), output.stdout, output.stderr);
        // Docker prints to standard output what became of an exec.
        let printed = format!("{}{}", output.stdout, output.stderr);
        let fits = |(code, says): &(i32, &[&str])| {
            output.code() == Some(*code) && says.iter().all(|word| printed.contains(word))
        };
        ensure!(self.0.iter().any(fits), "{output:?}");
        ensure!(!output.stdout.contains(RUNS), "{output:?}");
        Ok(())
    }
}

/// What a container prints that should not have run.
const RUNS: &str = "it runs";

/// An engine in which containers can be run and executed in, and that is asked what it knows of them.
trait Engine {
    fn places(&self) -> Result<Places>;
    /// Runs one to its end, and removes it then.
    fn run(&self, name: &str, args: &[&str]) -> Result<Output>;
    /// Begins one that stays, until it is removed by `remove`.
    fn begin(&self, name: &str) -> Result<()>;
    fn exec(&self, name: &str, args: &[&str]) -> Result<Output>;
    fn remove(&self, name: &str) -> Result<()>;
    /// All containers, tasks and what else it lists by container.
    fn lists(&self) -> Result<Vec<String>>;
    /// Whether each container has a shim, with a socket of its own.
    fn has_shims(&self) -> bool {
        true
    }
    /// Folders in its own in which something may stay.
    fn leaves(&self) -> &'static [&'static str] {
        &[]
    }
}

struct Docker(Dockerd);

impl Engine for Docker {
    fn places(&self) -> Result<Places> {
        let own = self.0.bundle("x").ancestors().nth(6).context("no folder")?.to_owned();
        Ok(Places { own, mounts_of: self.0.process() })
    }

    fn run(&self, name: &str, args: &[&str]) -> Result<Output> {
        done(&mut self.0.run(&["--rm", "--name", name], args))
    }

    fn begin(&self, name: &str) -> Result<()> {
        done(&mut self.0.run(&["--rm", "--detach", "--name", name], &["/bin/sleep", "1000"]))?.ok().map(drop)
    }

    fn exec(&self, name: &str, args: &[&str]) -> Result<Output> {
        done(self.0.docker(["exec", name]).args(args))
    }

    fn remove(&self, name: &str) -> Result<()> {
        done(&mut self.0.docker(["rm", "--force", name]))?.ok().map(drop)
    }

    fn lists(&self) -> Result<Vec<String>> {
        Ok(vec![done(&mut self.0.docker(["ps", "--all", "--quiet"]))?.ok()?.stdout])
    }
}

struct Ctr(Containerd);

impl Engine for Ctr {
    fn places(&self) -> Result<Places> {
        let own = self.0.socket().parent().context("no folder")?.to_owned();
        Ok(Places { own, mounts_of: self.0.process() })
    }

    fn run(&self, name: &str, args: &[&str]) -> Result<Output> {
        done(&mut self.0.run(&["--rm"], name, args))
    }

    fn begin(&self, name: &str) -> Result<()> {
        done(&mut self.0.run(&["--detach"], name, &["/bin/sleep", "1000"]))?.ok().map(drop)
    }

    fn exec(&self, name: &str, args: &[&str]) -> Result<Output> {
        done(self.0.ctr(["task", "exec", "--exec-id", "e1", name]).args(args))
    }

    fn remove(&self, name: &str) -> Result<()> {
        // It exits with the code of the task, which was killed.
        done(&mut self.0.ctr(["task", "delete", "--force", name]))?;
        done(&mut self.0.ctr(["containers", "delete", name]))?.ok().map(drop)
    }

    fn lists(&self) -> Result<Vec<String>> {
        let list =
            |what: &str| -> Result<String> { Ok(done(&mut self.0.ctr([what, "ls", "-q"]))?.ok()?.stdout) };
        let snapshots =
            done(&mut self.0.ctr(["snapshots", "--snapshotter", "overlayfs", "ls"]))?.ok()?.stdout;
        // Those of the image's layers stay.
        let snapshots =
            snapshots.lines().filter(|line| !line.starts_with("KEY") && !line.contains("sha256:"));
        Ok(vec![list("tasks")?, list("containers")?, snapshots.collect()])
    }
}

struct RootPodman(Podman);

impl Engine for RootPodman {
    fn places(&self) -> Result<Places> {
        let own = self.0.conmon().parent().context("no folder")?.to_owned();
        Ok(Places { own, mounts_of: Process::me() })
    }

    fn run(&self, name: &str, args: &[&str]) -> Result<Output> {
        done(&mut self.0.run(&["--rm", "--name", name], args))
    }

    fn begin(&self, name: &str) -> Result<()> {
        done(&mut self.0.run(&["--rm", "--detach", "--name", name], &["/bin/sleep", "1000"]))?.ok().map(drop)
    }

    fn exec(&self, name: &str, args: &[&str]) -> Result<Output> {
        done(self.0.podman(["exec", name]).args(args))
    }

    fn remove(&self, name: &str) -> Result<()> {
        done(&mut self.0.podman(["rm", "--force", "--time", "0", name]))?.ok().map(drop)
    }

    fn lists(&self) -> Result<Vec<String>> {
        Ok(vec![done(&mut self.0.podman(["ps", "--all", "--quiet", "--external"]))?.ok()?.stdout])
    }

    fn has_shims(&self) -> bool {
        false
    }

    /// The exit code of an init that ends while Podman fails to start it: a file of a few bytes on a tmpfs.
    fn leaves(&self) -> &'static [&'static str] {
        &["run/libpod/exits"]
    }
}

fn ensure_lists_nothing(engine: &dyn Engine) -> Result<()> {
    let lists = engine.lists()?;
    ensure!(lists.iter().all(|list| list.trim().is_empty()), "the engine still lists {lists:?}");
    Ok(())
}

/// The only refusal there is, of this kind, with the reason that was given.
fn the_refused(records: &[Record], kind: EventKind) -> Option<Record> {
    let refused = |record: &&Record| record.answer.as_ref().is_some_and(|a| a.decision == Verdict::Deny);
    let mut refused = records.iter().filter(refused);
    let (first, second) = (refused.next()?, refused.next());
    let answer = first.answer.as_ref()?;
    let fits = second.is_none() && first.event.kind() == kind && first.event.held();
    (fits && answer.reason.as_deref() == Some(REASON) && !answer.timed_out).then(|| first.clone())
}

/// What is told of a container that was refused at this point.
fn life_of_one_refused_at(kind: EventKind) -> &'static [EventKind] {
    match kind {
        PreCreate => &[PreCreate],
        Created => &[PreCreate, Created, Stopped, Deleted],
        _ => &[PreCreate, Created, Started, Stopped, Deleted],
    }
}

/// At one of the points before a container's first instruction.
fn refused_at(kind: EventKind, engine: &dyn Engine, runtime: &Runtime, seen: &Seen) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let (refuser, listener) = listen(runtime)?;
    // The engine makes its folders with the first container.
    let output = engine.run(&unique_id("allowed"), &["/bin/true"])?.ok()?;
    ensure!(output.stderr.is_empty(), "{output:?}");
    let places = engine.places()?;
    listener.wait_idle()?;
    if engine.has_shims() {
        refuser.wait_for_shims()?;
    }
    let before = places.traces(&[]);

    refuser.refuse(Some(kind));
    let output = engine.run(&unique_id("refused"), &["/bin/echo", RUNS])?;
    seen.check(&output)?;
    let refused = listener.wait_for("the refusal is told", |records| the_refused(records, kind))?;
    refuser.refuse(None);
    let id = refused.event.id();
    let records = listener.wait_besides(id, life_of_one_refused_at(kind), &[Killed])?;
    if let Some(pid) = records.last().and_then(|record| record.event.pid()) {
        ensure!(!Process(pid.cast_signed()).is_alive(), "{pid} lives");
    }
    ensure_lists_nothing(engine)?;
    places.wait_clean_but(&before, &[id], engine.leaves())?;
    if engine.has_shims() {
        refuser.wait_for_shims()?;
    }
    listener.wait_idle()?;
    ensure!(listener.status()?.containers == 0, "{:?}", listener.status()?);

    // And the engine works as before.
    engine.run(&unique_id("after"), &["/bin/true"])?.ok()?;
    listener.close()?;
    Ok(())
}

/// Another process in a container that runs: the container goes on, and so do later ones in it.
fn refused_at_exec(engine: &dyn Engine, runtime: &Runtime, seen: &Seen) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let (refuser, listener) = listen(runtime)?;
    let name = unique_id("stays");
    engine.begin(&name)?;
    // The engine says that it runs a moment before its first instruction is told.
    listener.wait_for("it has started", |records| {
        records.iter().any(|record| record.event.kind() == Started).then_some(())
    })?;
    ensure!(engine.exec(&name, &["/bin/echo", "first"])?.ok()?.stdout == "first\n");
    let places = engine.places()?;
    let id = listener.records()[0].event.id().to_owned();
    let before = wait_settled(&places, &[&id])?;

    refuser.refuse(Some(Exec));
    let output = engine.exec(&name, &["/bin/echo", RUNS])?;
    refuser.refuse(None);
    seen.check(&output)?;
    let refused = listener.wait_for("the refusal is told", |records| the_refused(records, Exec))?;
    ensure!(refused.event.id() == id);
    ensure!(refused.event.exec().context("no words")?.args == ["/bin/echo", RUNS]);
    places.wait_clean_but(&before, &[&id], engine.leaves())?;

    ensure!(engine.exec(&name, &["/bin/echo", "third"])?.ok()?.stdout == "third\n");
    engine.remove(&name)?;
    places.wait_clean_but(&before, &[&id], engine.leaves())?;
    let records = listener.wait_besides(
        &id,
        &[PreCreate, Created, Started, Exec, Exec, Exec, Stopped, Deleted],
        &[Killed, ExecStopped],
    )?;
    ensure!(
        records
            .iter()
            .all(|record| record.event.pid() == records[1].event.pid() || record.event.kind() == PreCreate)
    );
    ensure_lists_nothing(engine)?;
    listener.wait_idle()?;
    listener.close()?;
    Ok(())
}

/// What an engine does after the end of an exec that succeeded it does a little later.
fn wait_settled(places: &Places, ids: &[&str]) -> Result<answers::Traces> {
    let (mut last, mut same) = (places.traces(ids), 0);
    wait_until("the engine is at rest", PATIENCE, || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let now = places.traces(ids);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        (same == 3).then(|| last.clone())
    })
}

fn docker(runtime: &Runtime) -> Result<Docker> {
    Ok(Docker(Dockerd::start_with(runtime)?))
}

fn containerd(runtime: &Runtime) -> Result<Ctr> {
    Ok(Ctr(Containerd::start_with(runtime)?))
}

fn podman(runtime: &Runtime) -> Result<RootPodman> {
    Ok(RootPodman(Podman::start_with(runtime)?))
}

/// A container of a pod. The pod stays meanwhile, and its sandbox is nobody's to refuse.
fn refused_in_a_pod_at(kind: EventKind, says: Option<&[&[&str]]>) -> Result<()> {
    let _dog = watchdog(LIMIT);
    let runtime = Runtime::runc()?;
    let cri = Cri::start_with(&runtime)?;
    let places = places_of(&cri)?;
    let (refuser, listener) = listen(&runtime)?;
    // The engine makes its folders with the first container.
    let warm = cri.run_pod(&unique_id("warm"))?;
    let first = cri.create_container(&warm, "first", &["/bin/true"])?;
    cri.start_container(&first)?;
    wait_until("it ends", PATIENCE, || cri.exit_code(&first).ok().flatten())?;
    remove_pod(&cri, &warm)?;
    refuser.wait_for_shims()?;
    let nothing = places.traces(&[]);

    let pod = cri.run_pod(&unique_id("pod"))?;
    let id = cri.create_container(&pod, "main", &["/bin/echo", RUNS])?;
    let ids: [&str; 2] = [&id, &pod.id];
    let before = places.traces(&ids);
    refuser.refuse(Some(kind));
    let started = cri.start_container(&id);
    eprintln!("{kind}: {started:?}");
    // The start may have returned before the container's first instruction is told.
    listener.wait_for("the refusal is told", |records| {
        the_refused(records, kind).filter(|record| record.event.id() == id)
    })?;
    refuser.refuse(None);
    let exited = |code| {
        wait_until("it has exited", PATIENCE, || (cri.exit_code(&id).ok()? == Some(code)).then_some(()))
    };
    match says {
        Some(says) => {
            let error = format!("{:#}", started.err().context("it has started")?);
            ensure!(says.iter().any(|says| says.iter().all(|word| error.contains(word))), "{error}");
            exited(128)?;
        }
        None => {
            started?;
            exited(1)?;
            let log = std::fs::read_to_string(places.own.join("logs/main.log"))?;
            ensure!(log.contains("exec /bin/echo: operation not permitted") && !log.contains(RUNS), "{log}");
        }
    }
    listener.wait_besides(&id, life_of_one_refused_at(kind), &[Killed])?;
    // Until the kubelet removes the container, its log and its files stay, as after any end.
    places.wait_clean_but(&before, &ids, &["logs", "root"])?;
    ensure!(cri.ctr(&["tasks", "ls", "-q"])?.stdout.trim() == pod.id, "a task is left");

    // The pod takes the next one.
    let next = cri.create_container(&pod, "next", &["/bin/true"])?;
    cri.start_container(&next)?;
    wait_until("the next one ends", PATIENCE, || {
        cri.exit_code(&next).ok().flatten().filter(|code| *code == 0)
    })?;
    remove_pod(&cri, &pod)?;
    places.wait_clean(&nothing, &[&id, &next, &pod.id])?;
    refuser.wait_for_shims()?;
    ensure!(cri.ctr(&["containers", "ls", "-q"])?.stdout.trim().is_empty());
    listener.wait_idle()?;
    ensure!(listener.status()?.containers == 0, "{:?}", listener.status()?);
    listener.close()?;
    Ok(())
}

fn listen(runtime: &Runtime) -> Result<(Refuser, Listener)> {
    let refuser = Refuser::default();
    let handler = refuser.clone();
    let listener =
        Listener::start(only([runtime.path()]), move |event: &ContainerEvent| handler.on_event(event))?;
    Ok((refuser, listener))
}

fn places_of(cri: &Cri) -> Result<Places> {
    let own = cri.containerd().socket().parent().context("no folder")?.to_owned();
    Ok(Places { own, mounts_of: cri.containerd().process() })
}

fn remove_pod(cri: &Cri, pod: &Pod) -> Result<()> {
    cri.stop_pod(pod)?;
    cri.remove_pod(pod)
}

mod cri_with_runc {
    use super::*;

    #[test]
    fn at_pre_create() -> Result<()> {
        need!(Root, Busybox, Cri, Runc);
        refused_in_a_pod_at(PreCreate, Some(&[&["fork/exec", NOT_PERMITTED]]))
    }

    #[test]
    fn at_created() -> Result<()> {
        need!(Root, Busybox, Cri, Runc);
        refused_in_a_pod_at(Created, Some(&[&["start failed", NOT_PERMITTED], &[STOPPED]]))
    }

    #[test]
    fn at_started() -> Result<()> {
        need!(Root, Busybox, Cri, Runc);
        refused_in_a_pod_at(Started, None)
    }

    #[test]
    fn at_exec() -> Result<()> {
        need!(Root, Busybox, Cri, Runc);
        let _dog = watchdog(LIMIT);
        let runtime = Runtime::runc()?;
        let cri = Cri::start_with(&runtime)?;
        let places = places_of(&cri)?;
        let (refuser, listener) = listen(&runtime)?;
        let pod = cri.run_pod(&unique_id("pod"))?;
        let id = cri.create_container(&pod, "main", &["/bin/sleep", "1000"])?;
        cri.start_container(&id)?;
        let exec = |word| cri.exec_sync(&id, &["/bin/echo", word]);
        ensure!(exec("first")?.0 == "first\n");
        let ids: [&str; 2] = [&id, &pod.id];
        let before = wait_settled(&places, &ids)?;
        refuser.refuse(Some(Exec));
        let refused = exec(RUNS);
        refuser.refuse(None);
        eprintln!("{refused:?}");
        let error = format!("{:#}", refused.err().context("it was executed")?);
        ensure!(error.contains(NOT_PERMITTED), "{error}");
        listener.wait_for("the refusal is told", |records| the_refused(records, Exec))?;
        places.wait_clean(&before, &ids)?;
        ensure!(exec("third")?.0 == "third\n");
        listener.close()?;
        Ok(())
    }

    /// A pod whose sandbox is refused: at `Started` the pod is there, and has ended.
    #[test]
    fn a_sandbox() -> Result<()> {
        need!(Root, Busybox, Cri, Runc);
        let _dog = watchdog(LIMIT);
        let runtime = Runtime::runc()?;
        let cri = Cri::start_with(&runtime)?;
        let places = places_of(&cri)?;
        let (refuser, listener) = listen(&runtime)?;
        let warm = cri.run_pod(&unique_id("warm"))?;
        remove_pod(&cri, &warm)?;
        refuser.wait_for_shims()?;
        let nothing = places.traces(&[]);
        for kind in [PreCreate, Created, Started] {
            refuser.refuse_sandboxes(Some(kind));
            let pod = cri.run_pod(&unique_id("refused"));
            eprintln!("{kind}: {pod:?}");
            let refused = |record: &&Record| {
                record.event.kind() == kind
                    && record.answer.as_ref().is_some_and(|answer| answer.decision == Verdict::Deny)
            };
            let record =
                listener.wait_for("the refusal is told", |records| records.iter().find(refused).cloned())?;
            refuser.refuse_sandboxes(None);
            match pod {
                Ok(pod) => {
                    ensure!(kind == Started, "{kind}: the pod has started");
                    listener.wait_besides(
                        &pod.id,
                        &[PreCreate, Created, Started, Stopped, Deleted],
                        &[Killed],
                    )?;
                    remove_pod(&cri, &pod)?;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    let says = error.contains(NOT_PERMITTED) || (kind == Created && error.contains(STOPPED));
                    ensure!(kind != Started && says, "{kind}: {error}");
                }
            }
            places.wait_clean(&nothing, &[record.event.id()])?;
            refuser.wait_for_shims()?;
            ensure!(cri.ctr(&["containers", "ls", "-q"])?.stdout.trim().is_empty());
        }
        let pod = cri.run_pod(&unique_id("after"))?;
        remove_pod(&cri, &pod)?;
        listener.wait_idle()?;
        listener.close()?;
        Ok(())
    }
}

/// Without an engine.
mod youki_by_itself {
    use super::*;

    fn refused(kind: EventKind, act: impl FnOnce(&Runtime, &Bundle) -> Result<()>) -> Result<()> {
        let _dog = watchdog(LIMIT);
        let runtime = Runtime::youki()?;
        let (refuser, listener) = listen(&runtime)?;
        refuser.refuse(Some(kind));
        let script = format!("echo {RUNS}; exec sleep 1000");
        let bundle = Bundle::builder(unique_id("refused")).script(&script).build()?;
        act(&runtime, &bundle)?;
        listener.wait_for("the refusal is told", |records| the_refused(records, kind))?;
        if kind != PreCreate {
            runtime.delete(bundle.id(), true)?;
        }
        ensure!(bundle.stdout().contains(RUNS) == (kind == Exec), "{}", bundle.stdout());
        listener.wait_idle()?;
        ensure!(runtime.containers().is_empty(), "{:?}", runtime.containers());
        let left = || Leftovers::of(bundle.path());
        wait_until("nothing is left", PATIENCE, || left().is_empty().then_some(()))
            .with_context(|| left().to_string())?;
        listener.close()?;
        Ok(())
    }

    fn ensure_not_permitted<T>(result: Result<T>) -> Result<()> {
        let error = format!("{:#}", result.err().context("it succeeded")?);
        ensure!(error.contains("Operation not permitted"), "{error}");
        Ok(())
    }

    #[test]
    fn at_pre_create() -> Result<()> {
        need!(Root, Busybox, Youki);
        refused(PreCreate, |runtime, bundle| ensure_not_permitted(runtime.create(bundle)))
    }

    #[test]
    fn at_created() -> Result<()> {
        need!(Root, Busybox, Youki);
        refused(Created, |runtime, bundle| {
            let init = runtime.create(bundle)?;
            ensure_not_permitted(runtime.start(bundle.id()))?;
            ensure!(!init.is_alive(), "{init:?} lives");
            Ok(())
        })
    }

    /// The start may have succeeded by then.
    #[test]
    fn at_started() -> Result<()> {
        need!(Root, Busybox, Youki);
        refused(Started, |runtime, bundle| {
            let init = runtime.create(bundle)?;
            let _ = runtime.start(bundle.id());
            wait_until("the init ends", PATIENCE, || (!init.is_alive()).then_some(()))
        })
    }

    #[test]
    fn at_exec() -> Result<()> {
        need!(Root, Busybox, Youki);
        refused(Exec, |runtime, bundle| {
            let init = runtime.create(bundle)?;
            runtime.start(bundle.id())?;
            wait_until("it runs", PATIENCE, || bundle.stdout().contains(RUNS).then_some(()))?;
            ensure_not_permitted(runtime.exec(bundle.id(), &["/bin/true"]))?;
            ensure!(init.is_alive(), "the container goes on");
            Ok(())
        })
    }
}

macro_rules! refusals {
    ($($module:ident($need:ident, $family:ident): $engine:ident {
        pre_create: $pre:expr, created: $created:expr, started: $started:expr $(, exec: $exec:expr)? $(,)?
    })*) => {$(
        mod $module {
            use super::*;

            #[test]
            fn at_pre_create() -> Result<()> {
                need!(Root, Busybox, $need, $family);
                let runtime = Runtime::new(Family::$family)?;
                refused_at(PreCreate, &$engine(&runtime)?, &runtime, &$pre)
            }

            #[test]
            fn at_created() -> Result<()> {
                need!(Root, Busybox, $need, $family);
                let runtime = Runtime::new(Family::$family)?;
                refused_at(Created, &$engine(&runtime)?, &runtime, &$created)
            }

            #[test]
            fn at_started() -> Result<()> {
                need!(Root, Busybox, $need, $family);
                let runtime = Runtime::new(Family::$family)?;
                refused_at(Started, &$engine(&runtime)?, &runtime, &$started)
            }

            $(#[test]
            fn at_exec() -> Result<()> {
                need!(Root, Busybox, $need, $family);
                let runtime = Runtime::new(Family::$family)?;
                refused_at_exec(&$engine(&runtime)?, &runtime, &$exec)
            })?
        }
    )*};
}

/// What containerd says where the refused container's init has ended before its start is tried.
const STOPPED: &str = "cannot start a stopped process";

const NOT_PERMITTED: &str = "operation not permitted";

refusals! {
    docker_with_runc(Docker, Runc): docker {
        pre_create: Seen(&[(127, &["fork/exec", NOT_PERMITTED])]),
        created: Seen(&[(125, &["start failed", NOT_PERMITTED]), (125, &[STOPPED])]),
        started: Seen(&[(1, &["exec /bin/echo", NOT_PERMITTED])]),
        exec: Seen(&[(126, &[NOT_PERMITTED])]),
    }
    containerd_with_runc(Containerd, Runc): containerd {
        pre_create: Seen(&[(1, &["fork/exec", NOT_PERMITTED])]),
        created: Seen(&[(1, &["start failed", NOT_PERMITTED]), (1, &[STOPPED])]),
        started: Seen(&[(1, &["exec /bin/echo", NOT_PERMITTED])]),
        exec: Seen(&[(1, &[NOT_PERMITTED])]),
    }
    podman_with_runc(Podman, Runc): podman {
        pre_create: Seen(&[(126, &["conmon"])]),
        created: Seen(&[(126, &["runc start", NOT_PERMITTED]), (127, &["attach socket"])]),
        started: Seen(&[(1, &["exec /bin/echo", NOT_PERMITTED])]),
        exec: Seen(&[(255, &["conmon"])]),
    }
    docker_with_crun(Docker, Crun): docker {
        pre_create: Seen(&[(127, &["fork/exec", NOT_PERMITTED])]),
        created: Seen(&[(125, &["start failed", NOT_PERMITTED]), (125, &[STOPPED])]),
        started: Seen(&[(1, &["exec container process `/bin/echo`: Operation not permitted"])]),
        exec: Seen(&[(126, &[NOT_PERMITTED])]),
    }
    docker_with_youki(Docker, Youki): docker {
        pre_create: Seen(&[(127, &["fork/exec", NOT_PERMITTED])]),
        created: Seen(&[(125, &["start failed", NOT_PERMITTED]), (125, &[STOPPED])]),
        started: Seen(&[(255, &[])]),
        exec: Seen(&[(126, &[NOT_PERMITTED])]),
    }
    containerd_with_crun(Containerd, Crun): containerd {
        pre_create: Seen(&[(1, &["fork/exec", NOT_PERMITTED])]),
        created: Seen(&[(1, &["start failed", NOT_PERMITTED]), (1, &[STOPPED])]),
        started: Seen(&[(1, &["exec container process `/bin/echo`: Operation not permitted"])]),
        exec: Seen(&[(1, &[NOT_PERMITTED])]),
    }
    containerd_with_youki(Containerd, Youki): containerd {
        pre_create: Seen(&[(1, &["fork/exec", NOT_PERMITTED])]),
        created: Seen(&[(1, &["start failed", NOT_PERMITTED]), (1, &[STOPPED])]),
        started: Seen(&[(255, &[])]),
        exec: Seen(&[(1, &[NOT_PERMITTED])]),
    }
    podman_with_crun(Podman, Crun): podman {
        pre_create: Seen(&[(126, &["conmon"])]),
        created: Seen(&[(126, &["crun start", NOT_PERMITTED]), (127, &["attach socket"])]),
        started: Seen(&[(1, &["exec container process `/bin/echo`: Operation not permitted"])]),
        exec: Seen(&[(255, &["conmon"])]),
    }
    podman_with_youki(Podman, Youki): podman {
        pre_create: Seen(&[(126, &["conmon"])]),
        created: Seen(&[(126, &["youki start", NOT_PERMITTED]), (127, &["attach socket"])]),
        started: Seen(&[(255, &[])]),
        exec: Seen(&[(255, &["conmon"])]),
    }
}

#[test]
fn the_table_names_tests_that_exist() -> Result<()> {
    answers::ensure_documented("answers_deny")
}
