//! Command lines as the engines write them: seen with strace on containerd 1.6, Docker 20.10, Podman 4.3 and
//! buildah 1.28, unless a line says otherwise; long ids and paths are shortened.

use super::*;

fn check(family: Family, line: &str, expected: Invocation) {
    assert_eq!(parse(family, &argv(line)), Invocation { family, ..expected.clone() }, "{line}");
    assert!(looks_like_oci(&argv(line)), "{line}");
    // Where nobody has told us about the program, the same comes out.
    let generic = Invocation { family: Family::Generic, ..expected };
    assert_eq!(parse(Family::Generic, &argv(line)), generic, "{line}");
}

fn base(verb: Verb, id: &str) -> Invocation {
    Invocation { verb, id: os(id), ..Invocation::new(Family::Generic) }
}

#[test]
fn containerd_and_docker() {
    const T: &str = "/run/containerd/io.containerd.runtime.v2.task/default/c1";
    let global = format!("--root /run/containerd/runc/default --log {T}/log.json --log-format json");
    let of = |verb| Invocation {
        root: path("/run/containerd/runc/default"),
        log: os(&format!("{T}/log.json")),
        log_format: os("json"),
        ..base(verb, "c1")
    };
    let exec = |process| Some(ExecRequest { process_file: path(process), ..ExecRequest::default() });
    for (family, program) in [
        (Family::Runc, "/usr/sbin/runc"),
        (Family::Runc, "runc"),
        (Family::Crun, "/usr/bin/crun"),
        (Family::Youki, "/usr/local/bin/youki"),
        (Family::Runsc, "runsc"),
    ] {
        let line = |tail: &str| format!("{program} {global} {tail}");
        let created =
            Invocation { bundle: path(T), pid_file: path(&format!("{T}/init.pid")), ..of(Verb::Create) };
        check(family, &line(&format!("create --bundle {T} --pid-file {T}/init.pid c1")), created.clone());
        let tty = Invocation { console_socket: path("/tmp/pty1/pty.sock"), ..created };
        let create =
            format!("create --bundle {T} --pid-file {T}/init.pid --console-socket /tmp/pty1/pty.sock c1");
        check(family, &line(&create), tty);
        check(family, &line("start c1"), of(Verb::Start));
        check(family, &line("pause c1"), of(Verb::Pause));
        check(family, &line("resume c1"), of(Verb::Resume));
        check(family, &line("delete c1"), of(Verb::Delete));
        check(family, &line("delete --force c1"), Invocation { force: true, ..of(Verb::Delete) });
        check(family, &line("kill c1 9"), Invocation { signal: os("9"), ..of(Verb::Kill) });
        let all = Invocation { signal: os("9"), all: true, ..of(Verb::Kill) };
        check(family, &line("kill --all c1 9"), all);
        check(family, &line("state c1"), of(Verb::State));
        let run = format!("exec --process /tmp/runc-process4032610001 --detach --pid-file {T}/e1.pid c1");
        let expected = Invocation {
            detach: true,
            pid_file: path(&format!("{T}/e1.pid")),
            exec: exec("/tmp/runc-process4032610001"),
            ..of(Verb::Exec)
        };
        check(family, &line(&run), expected);
    }
    // go-runc writes this for `runc update`; runsc has no such verb.
    let update = Invocation { resources_file: path("-"), ..of(Verb::Update) };
    check(Family::Runc, &format!("runc {global} update --resources=- c1"), update.clone());
    check(Family::Crun, &format!("crun {global} update --resources=- c1"), update);
}

#[test]
fn containerd_restores_a_checkpoint() {
    // From go-runc's source: containerd's shim with a checkpoint.
    let line = "runc --root /r --log /l --log-format json --systemd-cgroup restore --image-path /i --work-path /w \
                --tcp-established --ext-unix-sk --shell-job --file-locks --manage-cgroups-mode soft --detach --pid-file \
                /p --no-pivot --bundle /b c1";
    let expected = Invocation {
        root: path("/r"),
        log: os("/l"),
        log_format: os("json"),
        systemd_cgroup: true,
        image_path: path("/i"),
        work_path: path("/w"),
        detach: true,
        pid_file: path("/p"),
        no_pivot: true,
        bundle: path("/b"),
        ..base(Verb::Restore, "c1")
    };
    check(Family::Runc, line, expected);
}

#[test]
fn buildkit_in_docker() {
    let expected = Invocation {
        log: os("/var/lib/docker/buildkit/executor/runc-log.json"),
        log_format: os("json"),
        bundle: path("/var/lib/docker/buildkit/executor/qnab"),
        ..base(Verb::Run, "qnab")
    };
    let line = "runc --log /var/lib/docker/buildkit/executor/runc-log.json --log-format json run --bundle \
                /var/lib/docker/buildkit/executor/qnab qnab";
    check(Family::Runc, line, expected.clone());
    // From buildkit's source: the rootless and --oci-worker-no-process-sandbox forms keep the state.
    let line = "buildkit-runc --log /var/lib/docker/buildkit/executor/runc-log.json --log-format json run --bundle \
                /var/lib/docker/buildkit/executor/qnab --keep qnab";
    check(Family::Runc, line, Invocation { keep: true, ..expected });
}

#[test]
fn podman() {
    const U: &str = "/var/lib/containers/storage/overlay-containers/e3df/userdata";
    const R: &str = "/run/containers/storage/overlay-containers/e3df/userdata";
    for (family, program) in [(Family::Crun, "/usr/bin/crun"), (Family::Runc, "/usr/bin/runc")] {
        let expected = Invocation {
            log: os(&format!("{R}/oci-log")),
            log_format: os("json"),
            bundle: path(U),
            pid_file: path(&format!("{R}/pidfile")),
            ..base(Verb::Create, "e3df")
        };
        let global = format!("{program} --log-format=json --log {R}/oci-log");
        check(family, &format!("{global} create --bundle {U} --pid-file {R}/pidfile e3df"), expected);
        let expected = Invocation {
            log: os(&format!("{R}/oci-log")),
            log_format: os("json"),
            pid_file: path(&format!("{U}/f1ff/exec_pid")),
            console_socket: path("/tmp/conmon-term.RVP5Y3"),
            detach: true,
            exec: Some(ExecRequest {
                process_file: path(&format!("{U}/f1ff/exec-process-29")),
                tty: true,
                ..ExecRequest::default()
            }),
            ..base(Verb::Exec, "e3df")
        };
        let exec = format!(
            "{global} exec --pid-file {U}/f1ff/exec_pid --process {U}/f1ff/exec-process-29 --detach --tty \
             --console-socket /tmp/conmon-term.RVP5Y3 e3df"
        );
        check(family, &exec, expected);
        check(family, &format!("{program} start e3df"), base(Verb::Start, "e3df"));
        let kill = Invocation { signal: os("15"), ..base(Verb::Kill, "e3df") };
        check(family, &format!("{program} kill e3df 15"), kill);
        let delete = Invocation { force: true, ..base(Verb::Delete, "e3df") };
        check(family, &format!("{program} delete --force e3df"), delete);
        let update = Invocation { resources_file: path("/var/tmp/podman39"), ..base(Verb::Update, "e3df") };
        check(family, &format!("{program} update --resources=/var/tmp/podman39 e3df"), update);
    }
}

#[test]
fn podman_s_conmon() {
    const U: &str = "/var/lib/containers/storage/overlay-containers/e3df/userdata";
    const R: &str = "/run/containers/storage/overlay-containers/e3df/userdata";
    let line = format!(
        "/usr/bin/conmon --api-version 1 -c e3df -u e3df -r /usr/bin/crun -b {U} -p {R}/pidfile -n web --exit-dir \
         /run/libpod/exits --full-attach -l k8s-file:{U}/ctr.log --log-level warning --runtime-arg --log-format=json \
         --runtime-arg --log --runtime-arg={R}/oci-log --conmon-pidfile {R}/conmon.pid --exit-command /usr/bin/podman \
         --exit-command-arg --root --exit-command-arg /var/lib/containers/storage --exit-command-arg container \
         --exit-command-arg cleanup --exit-command-arg e3df"
    );
    let facts = ConmonFacts {
        uuid: os("e3df"),
        name: os("web"),
        runtime: path("/usr/bin/crun"),
        runtime_args: words(&format!("--log-format=json --log {R}/oci-log")),
        conmon_pid_file: path(&format!("{R}/conmon.pid")),
        exit_dir: path("/run/libpod/exits"),
        exit_command: path("/usr/bin/podman"),
        exit_command_args: words("--root /var/lib/containers/storage container cleanup e3df"),
        log_paths: words(&format!("k8s-file:{U}/ctr.log")),
        ..ConmonFacts::default()
    };
    let expected = Invocation {
        verb: Verb::Monitor,
        id: os("e3df"),
        bundle: path(U),
        pid_file: path(&format!("{R}/pidfile")),
        conmon: Some(facts.clone()),
        ..Invocation::new(Family::Conmon)
    };
    assert_eq!(parse(Family::Conmon, &argv(&line)), expected);
    assert!(!looks_like_oci(&argv(&line)));
    // podman exec: the bundle and the pid file are the exec session's.
    let line = format!(
        "/usr/bin/conmon --api-version 1 -c e3df -u f1ff -r /usr/bin/crun -b {U}/f1ff -p {U}/f1ff/exec_pid -n web \
         --exit-dir {U}/f1ff/exit --full-attach -l none --log-level warning --runtime-arg --log-format=json \
         --runtime-arg --log --runtime-arg={R}/oci-log -t -e --exec-attach --exec-process-spec {U}/f1ff/exec-process-29 \
         --exit-command /usr/bin/podman"
    );
    let inv = parse(Family::Conmon, &argv(&line));
    assert_eq!((inv.id, inv.bundle), (os("e3df"), path(&format!("{U}/f1ff"))));
    let facts = inv.conmon.unwrap();
    assert!(facts.exec && facts.exec_attach && facts.terminal);
    assert_eq!(facts.exec_process_spec, path(&format!("{U}/f1ff/exec-process-29")));
}

#[test]
fn cri_o_s_conmon() {
    // From CRI-O's source, internal/oci/runtime_oci.go.
    let line = "/usr/libexec/crio/conmon -b /run/containers/storage/overlay-containers/a1/userdata -c a1 --exit-dir \
                /var/run/crio/exits -l /var/log/pods/x/0.log --log-level info -n k8s_web_web-0_default_uid_0 -P \
                /run/containers/storage/overlay-containers/a1/userdata/conmon-pidfile -p \
                /run/containers/storage/overlay-containers/a1/userdata/pidfile --persist-dir \
                /var/lib/containers/storage/overlay-containers/a1/userdata -r /usr/libexec/crio/crun --runtime-arg \
                --root=/run/crun --socket-dir-path /var/run/crio --syslog -u a1 -s";
    let inv = parse(Family::Conmon, &argv(line));
    assert_eq!((inv.verb, inv.id), (Verb::Monitor, os("a1")));
    assert!(inv.systemd_cgroup);
    assert_eq!(inv.pid_file, path("/run/containers/storage/overlay-containers/a1/userdata/pidfile"));
    let facts = inv.conmon.unwrap();
    assert_eq!(facts.name, os("k8s_web_web-0_default_uid_0"));
    assert_eq!(facts.runtime, path("/usr/libexec/crio/crun"));
    assert_eq!(facts.runtime_args, words("--root=/run/crun"));
    assert_eq!(facts.socket_dir, path("/var/run/crio"));
    // And the runtime below it.
    let line = "/usr/libexec/crio/crun --root=/run/crun --systemd-cgroup create --bundle /u --pid-file /u/pidfile a1";
    let expected = Invocation {
        root: path("/run/crun"),
        systemd_cgroup: true,
        bundle: path("/u"),
        pid_file: path("/u/pidfile"),
        ..base(Verb::Create, "a1")
    };
    check(Family::Crun, line, expected);
}

#[test]
fn buildah() {
    const B: &str = "/var/tmp/buildah3903715126";
    let id = "buildah-buildah3903715126";
    let expected =
        Invocation { bundle: path(B), pid_file: path(&format!("{B}/pid")), ..base(Verb::Create, id) };
    for (family, program) in [(Family::Runc, "/usr/bin/runc"), (Family::Crun, "/usr/bin/crun")] {
        let line = format!("{program} create --bundle {B} --pid-file {B}/pid {id}");
        check(family, &line, expected.clone());
        let line = format!("{program} create --bundle {B} --pid-file {B}/pid --no-pivot {id}");
        check(family, &line, Invocation { no_pivot: true, ..expected.clone() });
        check(family, &format!("{program} state {id}"), base(Verb::State, id));
    }
}

#[test]
fn cri_by_containerd_with_systemd() {
    // As containerd above, with what `SystemdCgroup = true` adds; the state root is the namespace's.
    const T: &str = "/run/containerd/io.containerd.runtime.v2.task/k8s.io/5a1b";
    let line = format!(
        "runc --root /run/containerd/runc/k8s.io --log {T}/log.json --log-format json --systemd-cgroup create --bundle {T} \
         --pid-file {T}/init.pid 5a1b"
    );
    let expected = Invocation {
        root: path("/run/containerd/runc/k8s.io"),
        log: os(&format!("{T}/log.json")),
        log_format: os("json"),
        systemd_cgroup: true,
        bundle: path(T),
        pid_file: path(&format!("{T}/init.pid")),
        ..base(Verb::Create, "5a1b")
    };
    check(Family::Runc, &line, expected);
}

#[test]
fn re_executions_ask_for_nothing() {
    for line in ["/usr/sbin/runc init", "runc init", "/usr/bin/runc init"] {
        assert_eq!(parse(Family::Runc, &argv(line)).verb, Verb::Init, "{line}");
        assert!(!looks_like_oci(&argv(line)), "{line}");
    }
    assert_eq!(parse(Family::Runc, &argv("runc --version")).verb, Verb::Help);
    assert_eq!(parse(Family::Conmon, &argv("/usr/bin/conmon --version")).verb, Verb::Help);
}
