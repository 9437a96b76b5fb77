//! Every spelling that the programs accept, and how lines are read that they refuse.

use super::*;

fn each(family: Family, lines: &[&str], expected: &Invocation) {
    for line in lines {
        assert_eq!(parse(family, &argv(line)), *expected, "{line}");
    }
}

fn created(family: Family, verb: Verb) -> Invocation {
    Invocation { verb, id: os("c1"), bundle: path("/b"), ..Invocation::new(family) }
}

#[test]
fn runc_bundle() {
    let lines = [
        "runc create --bundle /b c1",
        "runc create --bundle=/b c1",
        "runc create -bundle /b c1",
        "runc create -bundle=/b c1",
        "runc create -b /b c1",
        "runc create -b=/b c1",
        "runc create --b /b c1",
        "runc create --b=/b c1",
        "runc create c1 --bundle /b",
        "runc create c1 -b=/b",
        "runc create --bundle /b -- c1",
        "runc -- create --bundle /b c1",
        "runc --debug create --bundle /b c1",
        "runc -debug=false create --bundle /b c1",
        "runc create --bundle /other --bundle /b c1",
        "runc create --no-pivot=false --bundle /b c1",
        "runc create --bundle /b --no-subreaper c1",
        "runc create /b c1 --bundle",
        "anything create --bundle /b c1",
        // Refused by the program, or accepted by a newer one.
        "runc create --bundle /b --from-the-future 7 c1",
        "runc create --from-the-future=7 --bundle /b c1",
        "runc create --from-the-future c1 --bundle /b",
        "runc --from-the-future 7 create --bundle /b c1",
        "runc --from-the-future create --bundle /b c1",
    ];
    each(Family::Runc, &lines, &created(Family::Runc, Verb::Create));
}

#[test]
fn runc_no_bundle_is_the_working_directory() {
    let expected = Invocation { verb: Verb::Run, id: os("c1"), ..Invocation::new(Family::Runc) };
    each(
        Family::Runc,
        &["runc run c1", "runc run -- c1", "runc run -d=false c1", "runc run --bundle= c1"],
        &expected,
    );
    let relative = Invocation { bundle: path("../b"), ..expected };
    each(Family::Runc, &["runc run -b ../b c1"], &relative);
}

#[test]
fn runc_run_with_everything() {
    let expected = Invocation {
        pid_file: path("p"),
        root: path("/r"),
        log: os("/l"),
        log_format: os("json"),
        console_socket: path("/s"),
        detach: true,
        keep: true,
        systemd_cgroup: true,
        rootless: Some(true),
        preserve_fds: Some(3),
        no_pivot: true,
        no_new_keyring: true,
        ..created(Family::Runc, Verb::Run)
    };
    let lines = [
        "runc --root /r --log /l --log-format json --systemd-cgroup --rootless true run --bundle /b \
         --console-socket /s --detach --keep --pid-file p --no-subreaper --no-pivot --no-new-keyring \
         --preserve-fds 3 c1",
        "runc -root=/r -log=/l -log-format=json -systemd-cgroup=1 -rootless=T run c1 -b=/b -console-socket=/s \
         -d -keep=true -pid-file=p -no-pivot -no-new-keyring=TRUE -preserve-fds=3",
        // urfave/cli 3 takes global options anywhere.
        "runc run --root /r --log /l --log-format json --systemd-cgroup --rootless true --bundle /b \
         --console-socket /s --detach --keep --pid-file p --no-pivot --no-new-keyring --preserve-fds 3 c1",
    ];
    each(Family::Runc, &lines, &expected);
}

#[test]
fn switches_can_be_switched_off_in_go() {
    let expected = Invocation { verb: Verb::Delete, id: os("c1"), ..Invocation::new(Family::Runc) };
    let lines = ["runc delete --force=false c1", "runc delete -f=0 c1", "runc delete -force -force=F c1"];
    each(Family::Runc, &lines, &expected);
    let auto = Invocation { verb: Verb::State, id: os("c1"), ..Invocation::new(Family::Runc) };
    each(Family::Runc, &["runc --rootless auto state c1", "runc state c1"], &auto);
    let off = Invocation { rootless: Some(false), ..auto };
    each(Family::Runc, &["runc --rootless=false state c1"], &off);
}

#[test]
fn runc_exec_leaves_the_command_alone() {
    let exec = ExecRequest { args: words("ls -t --user 7 -- x"), tty: true, ..ExecRequest::default() };
    let expected =
        Invocation { verb: Verb::Exec, id: os("c1"), exec: Some(exec), ..Invocation::new(Family::Runc) };
    let lines = [
        "runc exec -t c1 ls -t --user 7 -- x",
        "runc exec --tty=true c1 ls -t --user 7 -- x",
        "runc exec -t -- c1 ls -t --user 7 -- x",
        "runc exec -t c1 -- ls -t --user 7 -- x",
    ];
    each(Family::Runc, &lines, &expected);
}

#[test]
fn runc_exec_with_everything() {
    let exec = ExecRequest {
        process_file: path("/p.json"),
        args: vec![],
        user: os("1:2"),
        cwd: path("/w"),
        tty: true,
        env: words("A=1 B=2"),
        caps: words("CAP_X CAP_Y"),
        cgroups: words("cpu,cpuacct:sub"),
    };
    let expected = Invocation {
        verb: Verb::Exec,
        id: os("c1"),
        pid_file: path("/pid"),
        console_socket: path("/s"),
        detach: true,
        preserve_fds: Some(1),
        exec: Some(exec),
        ..Invocation::new(Family::Runc)
    };
    let lines = [
        "runc exec --process /p.json --user 1:2 --cwd /w --tty --env A=1 --env B=2 --cap CAP_X --cap CAP_Y --cgroup \
         cpu,cpuacct:sub --pid-file /pid --console-socket /s --detach --preserve-fds 1 --additional-gids 7 \
         --process-label l --apparmor a --no-new-privs --ignore-paused c1",
        "runc exec -p /p.json -u=1:2 -cwd=/w -t -e A=1 -e=B=2 -c CAP_X -c=CAP_Y -cgroup cpu,cpuacct:sub -pid-file /pid \
         -console-socket /s -d -preserve-fds=1 -g 7 -g 8 c1",
    ];
    each(Family::Runc, &lines, &expected);
}

#[test]
fn runc_other_verbs() {
    let base = |verb| Invocation { verb, id: os("c1"), ..Invocation::new(Family::Runc) };
    let kill = Invocation { signal: os("KILL"), all: true, ..base(Verb::Kill) };
    let lines = [
        "runc kill --all c1 KILL",
        "runc kill -a c1 KILL",
        "runc kill c1 KILL -a",
        "runc kill c1 --all KILL",
    ];
    each(Family::Runc, &lines, &kill);
    each(Family::Runc, &["runc kill c1"], &base(Verb::Kill));
    each(Family::Runc, &["runc ps c1 -ef", "runc ps -f json c1"], &base(Verb::Ps));
    each(Family::Runc, &["runc events --stats c1", "runc events --interval 5s c1"], &base(Verb::Events));
    let update = Invocation { resources_file: path("-"), ..base(Verb::Update) };
    each(Family::Runc, &["runc update -r - c1", "runc update --resources=- c1"], &update);
    let update =
        Invocation { limits: vec![("memory", "7".into()), ("cpu-quota", "9".into())], ..base(Verb::Update) };
    each(Family::Runc, &["runc update --memory 5 --memory 7 --cpu-quota=9 c1"], &update);
    let restore = Invocation {
        image_path: path("/i"),
        work_path: path("/w"),
        bundle: path("/b"),
        detach: true,
        ..base(Verb::Restore)
    };
    let lines = ["runc restore --image-path /i --work-path /w -b /b -d --lazy-pages --empty-ns network c1"];
    each(Family::Runc, &lines, &restore);
    let checkpoint = Invocation { image_path: path("/i"), leave_running: true, ..base(Verb::Checkpoint) };
    each(
        Family::Runc,
        &["runc checkpoint --image-path /i --leave-running --status-fd 3 --page-server a:1 c1"],
        &checkpoint,
    );
    for (line, verb) in [
        ("runc list -q", Verb::List),
        ("runc spec --bundle /x", Verb::Spec),
        ("runc features", Verb::Features),
        ("runc init", Verb::Init),
        ("/proc/self/exe init", Verb::Init),
        ("runc --version", Verb::Help),
        ("runc -v", Verb::Help),
        ("runc help create", Verb::Help),
        ("runc h", Verb::Help),
        ("runc --help create c1", Verb::Help),
        ("runc create --help c1", Verb::Help),
        ("runc create c1 -h", Verb::Help),
        ("runc", Verb::None),
        ("runc --debug", Verb::None),
        ("runc frobnicate c1", Verb::Other("frobnicate".into())),
    ] {
        assert_eq!(parse(Family::Runc, &argv(line)).verb, verb, "{line}");
    }
    assert!(parse(Family::Runc, &argv("runc create --help c1")).exec.is_none());
    assert_eq!(parse(Family::Runc, &argv("runc exec c1 ls --help")).verb, Verb::Exec);
}

#[test]
fn crun_bundle() {
    let lines = [
        "crun create --bundle /b c1",
        "crun create --bundle=/b c1",
        "crun create --bun /b c1",
        "crun create --b=/b c1",
        "crun create -b /b c1",
        "crun create -b/b c1",
        "crun create -b /b -- c1",
        "crun -- create -b /b c1",
        "crun --debug create -b /b c1",
        "crun --deb create -b /b c1",
        "crun --cgroup-manager cgroupfs create -b /b c1",
        "crun --rootless true create -b /b c1",
        "crun create --program-name=x -b /b c1",
        "crun create --HANG=0 -b /b c1",
        // Refused by the program, or accepted by a newer one.
        "crun create --from-the-future 7 -b /b c1",
        "crun create -b /b --from-the-future c1",
        "crun create -b /b c1 --no-pivot",
    ];
    each(Family::Crun, &lines, &created(Family::Crun, Verb::Create));
    // getopt, unlike Go, counts dashes: this is `-b undle`.
    assert_eq!(parse(Family::Crun, &argv("crun create -bundle c1")).bundle, path("undle"));
    assert_eq!(parse(Family::Crun, &argv("crun create -b= c1")).bundle, path("="));
}

#[test]
fn crun_run_with_everything() {
    let expected = Invocation {
        pid_file: path("p"),
        root: path("/r"),
        log: os("/l"),
        log_format: os("json"),
        console_socket: path("/s"),
        config_file: path("other.json"),
        detach: true,
        systemd_cgroup: true,
        preserve_fds: Some(3),
        no_pivot: true,
        no_new_keyring: true,
        ..created(Family::Crun, Verb::Run)
    };
    let lines = [
        "crun --root /r --log /l --log-format json --systemd-cgroup run --bundle /b --console-socket /s --detach \
         --config other.json --pid-file p --no-subreaper --no-pivot --no-new-keyring --preserve-fds 3 c1",
        "crun --root=/r --log=/l --log-f=json --systemd run -db/b --cons=/s -fother.json --pid=p --no-p --no-n \
         --pres=3 c1",
        "crun --root=/r --log=/l --log-format=json --cgroup-manager=systemd run -b /b -df other.json \
         --console-socket=/s --pid-file=p --no-pivot --no-new-keyring --preserve-fds=3 c1",
    ];
    each(Family::Crun, &lines, &expected);
}

#[test]
fn crun_exec() {
    let exec = |tty| ExecRequest { args: words("ls -t -- x"), tty, user: os("1"), ..ExecRequest::default() };
    let expected = |tty| Invocation {
        verb: Verb::Exec,
        id: os("c1"),
        exec: Some(exec(tty)),
        ..Invocation::new(Family::Crun)
    };
    let on = [
        "crun exec -t -u 1 c1 ls -t -- x",
        "crun exec --tty --user=1 c1 ls -t -- x",
        "crun exec -tyes -u1 c1 ls -t -- x",
        "crun exec --tty=0 -u1 c1 ls -t -- x",
        "crun exec -t -u1 -- c1 ls -t -- x",
    ];
    each(Family::Crun, &on, &expected(true));
    let off = ["crun exec -tno -u1 c1 ls -t -- x", "crun exec --tt=false --us 1 c1 ls -t -- x"];
    each(Family::Crun, &off, &expected(false));
    // The id ends the options: what follows is the command's.
    let inv = parse(Family::Crun, &argv("crun exec c1 -t --help"));
    assert_eq!((inv.verb, inv.exec.map(|e| e.args)), (Verb::Exec, Some(words("-t --help"))));
}

#[test]
fn crun_other_verbs() {
    let base = |verb| Invocation { verb, id: os("c1"), ..Invocation::new(Family::Crun) };
    let kill = Invocation { signal: os("9"), all: true, ..base(Verb::Kill) };
    each(Family::Crun, &["crun kill -a c1 9", "crun kill --a c1 9"], &kill);
    let regex = Invocation { regex: true, force: true, id: os("c.*"), ..base(Verb::Delete) };
    each(Family::Crun, &["crun delete -fr c.*", "crun delete --force --regex c.*"], &regex);
    let update = Invocation { resources_file: path("/f"), ..base(Verb::Update) };
    each(Family::Crun, &["crun update -r/f c1", "crun update --resources=/f c1"], &update);
    let update = Invocation { limits: vec![("memory", "7".into())], ..update };
    each(Family::Crun, &["crun update --resources=/f --memory 7 c1"], &update);
    for (line, verb) in [
        ("crun --version", Verb::Help),
        ("crun -V", Verb::Help),
        ("crun -?", Verb::Help),
        ("crun --usage", Verb::Help),
        ("crun create --help", Verb::Help),
        ("crun create -b --help c1", Verb::Create),
        ("crun list -q", Verb::List),
        ("crun features", Verb::Features),
    ] {
        assert_eq!(parse(Family::Crun, &argv(line)).verb, verb, "{line}");
    }
}

#[test]
fn youki_bundle() {
    let lines = [
        "youki create --bundle /b c1",
        "youki create --bundle=/b c1",
        "youki create -b /b c1",
        "youki create -b/b c1",
        "youki create -b=/b c1",
        "youki create c1 -b /b",
        "youki create -b /b -- c1",
        "youki --debug create -b /b c1",
        "youki --log-level debug create -b /b c1",
    ];
    each(Family::Youki, &lines, &created(Family::Youki, Verb::Create));
}

#[test]
fn youki_run_with_everything() {
    let expected = Invocation {
        pid_file: path("p"),
        root: path("/r"),
        log: os("/l"),
        log_format: os("json"),
        console_socket: path("/s"),
        detach: true,
        keep: true,
        systemd_cgroup: true,
        preserve_fds: Some(3),
        no_pivot: true,
        no_new_keyring: true,
        ..created(Family::Youki, Verb::Run)
    };
    let lines = [
        "youki --root /r --log /l --log-format json --systemd-cgroup run --bundle /b --console-socket /s --detach --keep \
         --pid-file p --no-subreaper --no-pivot --no-new-keyring --preserve-fds 3 c1",
        "youki -sr /r -l=/l --log-format=json run c1 -db/b -c/s --keep -p p --no-pivot --no-new-keyring \
         --preserve-fds=3",
    ];
    each(Family::Youki, &lines, &expected);
}

#[test]
fn youki_exec_stops_at_the_command() {
    let exec = ExecRequest { args: words("ls -t -- x"), tty: true, ..ExecRequest::default() };
    let expected =
        Invocation { verb: Verb::Exec, id: os("c1"), exec: Some(exec), ..Invocation::new(Family::Youki) };
    let lines = [
        "youki exec -t c1 ls -t -- x",
        "youki exec c1 -t ls -t -- x",
        "youki exec c1 -t -- ls -t -- x",
        "youki exec -t -- c1 ls -t -- x",
    ];
    each(Family::Youki, &lines, &expected);
}

#[test]
fn youki_other_verbs() {
    let base = |verb| Invocation { verb, id: os("c1"), ..Invocation::new(Family::Youki) };
    let kill = Invocation { signal: os("9"), all: true, ..base(Verb::Kill) };
    each(Family::Youki, &["youki kill -a c1 9", "youki kill c1 --all 9", "youki kill c1 9 -a"], &kill);
    each(Family::Youki, &["youki checkpointt c1"], &base(Verb::Checkpoint));
    for (line, verb) in
        [("youki info", Verb::Help), ("youki -V", Verb::Help), ("youki create -h", Verb::Help)]
    {
        assert_eq!(parse(Family::Youki, &argv(line)).verb, verb, "{line}");
    }
}

#[test]
fn runsc_bundle() {
    let lines = [
        "runsc create --bundle /b c1",
        "runsc create -bundle=/b c1",
        "runsc --network none create -bundle /b c1",
        "runsc --network=none --ignore-cgroups -platform ptrace create --bundle=/b c1",
        "runsc --strace -debug-log /tmp/ create --bundle /b --user-log /u c1",
        "runsc -net-raw=true create --bundle /b -- c1",
    ];
    each(Family::Runsc, &lines, &created(Family::Runsc, Verb::Create));
}

#[test]
fn runsc_executes_itself_and_asks_for_nothing_new() {
    for line in [
        "runsc-gofer --root=/r gofer --bundle /b --io-fds=3",
        "runsc-sandbox --root=/r boot --bundle=/b c1",
        "/proc/self/exe --root=/r boot --bundle=/b c1",
        "runsc umount --sync-fd=3 /x",
        "runsc-exec --root=/r exec --pid-file=/p --process /f c1",
    ] {
        let inv = parse(Family::Runsc, &argv(line));
        assert_eq!(inv.verb, Verb::Init, "{line}");
        assert!(inv.exec.is_none(), "{line}");
    }
    let inv = parse(Family::Runsc, &argv("runsc delete -force c1 c2 c3"));
    assert_eq!((inv.id, inv.more_ids, inv.force), (os("c1"), words("c2 c3"), true));
    let inv = parse(Family::Runsc, &argv("runsc -rootless kill -all c1 9"));
    assert_eq!((inv.id, inv.signal, inv.all, inv.rootless), (os("c1"), os("9"), true, Some(true)));
    assert_eq!(parse(Family::Runsc, &argv("runsc do ls")).verb, Verb::Other("do".into()));
}

#[test]
fn conmon_spellings() {
    let facts = ConmonFacts {
        uuid: os("u1"),
        name: os("n1"),
        runtime: path("/usr/bin/runc"),
        runtime_args: words("--root /r"),
        conmon_pid_file: path("/cp"),
        terminal: true,
        stdin: true,
        ..ConmonFacts::default()
    };
    let expected = Invocation {
        pid_file: path("/p"),
        systemd_cgroup: true,
        conmon: Some(facts),
        ..created(Family::Conmon, Verb::Monitor)
    };
    let lines = [
        "conmon -c c1 -u u1 -n n1 -r /usr/bin/runc --runtime-arg --root --runtime-arg /r -P /cp -t -i -s -b /b -p /p",
        "conmon --cid c1 --cuuid u1 --name n1 --runtime /usr/bin/runc --runtime-arg=--root --runtime-arg=/r \
         --conmon-pidfile /cp --terminal --stdin --systemd-cgroup --bundle /b --container-pidfile /p",
        "conmon --api-version 1 --cid=c1 --cuuid=u1 --name=n1 --runtime=/usr/bin/runc --runtime-arg --root \
         --runtime-arg=/r --conmon-pidfile=/cp -tis --bundle=/b --pidfile=/p",
        "conmon stray -tisc c1 -u u1 -n n1 -r /usr/bin/runc --runtime-arg --root --runtime-arg /r -P /cp -b /b -p /p \
         -T 5 --log-size-max 7 -- -n n2",
    ];
    each(Family::Conmon, &lines, &expected);
    assert_eq!(parse(Family::Conmon, &argv("conmon --version")).verb, Verb::Help);
    assert_eq!(parse(Family::Conmon, &argv("conmon -c c1 -h")).verb, Verb::Help);
    assert_eq!(parse(Family::Conmon, &argv("conmon -n n1")).verb, Verb::None);
}

#[test]
fn unheard_of_runtimes() {
    let lines = [
        "oci-runtime create --bundle /b c1",
        "oci-runtime create -bundle=/b c1",
        "oci-runtime create -b /b c1",
        "oci-runtime create -b/b c1",
        "oci-runtime create c1 -b /b",
        "oci-runtime --colour always create --bundle /b c1",
        "oci-runtime --colour create --bundle /b c1",
        "oci-runtime --colour=always --fast create --depth 7 --bundle /b c1",
        "oci-runtime create --bundle /b --fast c1",
        "oci-runtime create --fast c1 --bundle /b",
        "wrapper inner create --bundle /b c1",
    ];
    each(Family::Generic, &lines, &created(Family::Generic, Verb::Create));
    let expected = Invocation { detach: true, root: path("/r"), ..created(Family::Generic, Verb::Run) };
    each(Family::Generic, &["x --root /r run -db /b c1", "x run --root=/r -d --b=/b c1"], &expected);
    let exec = ExecRequest { args: words("ls -l"), tty: true, ..ExecRequest::default() };
    let expected =
        Invocation { verb: Verb::Exec, id: os("c1"), exec: Some(exec), ..Invocation::new(Family::Generic) };
    each(Family::Generic, &["x exec -t c1 ls -l"], &expected);
    let other = Invocation { verb: Verb::Other("frob".into()), ..Invocation::new(Family::Generic) };
    each(Family::Generic, &["x frob -b /b c1"], &other);
}

#[test]
fn wrappers_are_read_from_the_runtime_on() {
    let runc = [
        "sudo runc create --bundle /b c1",
        "nsenter -t 1 -m /usr/sbin/runc create -b /b c1",
        "env A=b runc create -b=/b c1",
    ];
    each(Family::Generic, &runc, &created(Family::Runc, Verb::Create));
    let crun = ["sudo -E -u root crun create -b/b c1", "strace -f -o /x crun create --bun /b c1"];
    each(Family::Generic, &crun, &created(Family::Crun, Verb::Create));
    let inv = parse(Family::Generic, &argv("systemd-run --scope conmon -c c1 -n web"));
    assert_eq!((inv.verb, inv.id, inv.conmon.and_then(|c| c.name)), (Verb::Monitor, os("c1"), os("web")));
}

#[test]
fn words_need_not_be_text() {
    use std::os::unix::ffi::OsStringExt;
    let word = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    let line = [word(b"runc"), word(b"create"), word(b"--bundle=/\xff\xfe="), word(b"\xc3\x28")];
    let inv = parse(Family::Runc, &line);
    assert_eq!(inv.bundle, Some(PathBuf::from(word(b"/\xff\xfe="))));
    assert_eq!(inv.id, Some(word(b"\xc3\x28")));
}

#[test]
fn a_value_that_is_missing_sets_nothing() {
    for (family, line) in [
        (Family::Runc, "runc create --bundle"),
        (Family::Crun, "crun create -b"),
        (Family::Youki, "youki create -b"),
        (Family::Conmon, "conmon -b"),
        (Family::Generic, "x create -b"),
    ] {
        let inv = parse(family, &argv(line));
        assert_eq!((inv.bundle, inv.id), (None, None), "{line}");
    }
    let inv = parse(Family::Runc, &argv("runc create --preserve-fds many c1"));
    assert_eq!((inv.preserve_fds, inv.id), (None, os("c1")));
}
