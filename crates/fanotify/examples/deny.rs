//! Denies every execution of one file for some seconds: `deny FILE [SECONDS]`, as root.
//!
//! Try it on a copy (`cp /bin/true /tmp/true; deny /tmp/true &`), not on a program that the system needs.

use std::error::Error;
use std::time::{Duration, Instant};

use fanotify::{Event, Group};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let path = args.next().ok_or("usage: deny FILE [SECONDS]")?;
    let seconds = args.next().map_or(Ok(10), |text| text.to_string_lossy().parse())?;

    let group = Group::builder().nonblocking(true).build()?;
    let mark = group.mark(&path)?;
    println!("denying {} for {seconds} s", path.display());

    let end = Instant::now() + Duration::from_secs(seconds);
    let mut events = Vec::new();
    while group.wait(Some(end.saturating_duration_since(Instant::now())))? {
        group.read(&mut events)?;
        for event in events.drain(..) {
            match event {
                Event::Permission(event) => {
                    println!("denied task {}, inode {}", event.task(), event.inode()?);
                    event.deny()?;
                }
                other => println!("not asked: {other:?}"),
            }
        }
    }
    mark.remove()?;
    Ok(())
}
