use super::*;

#[test]
fn docker_create() {
    let argv: Vec<OsString> = "runc --root /run/docker/runtime-runc/moby --log l --log-format json create --bundle /b --pid-file /b/init.pid c1".split(' ').map(OsString::from).collect();
    let inv = parse(Family::Runc, &argv);
    assert_eq!(inv.verb, Verb::Create);
    assert_eq!(inv.id.as_deref(), Some(OsStr::new("c1")));
}
