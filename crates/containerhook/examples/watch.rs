//! Prints every record as a line of JSON, for as many seconds as the first argument says; the others are runtimes to mark.
//!
//! `cargo run --example watch -- 30 /usr/sbin/runc`

use std::time::Duration;

use containerhook::{ContainerEvent, ContainerNotifier, Record};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().map_or(Ok(10), |word| word.parse())?;
    let mut builder =
        ContainerNotifier::builder().on_record(|record: &Record| println!("{}", record.to_json()));
    for runtime in arguments {
        builder = builder.runtime(runtime).discover(false);
    }
    let notifier = builder.start(|_: &ContainerEvent| ())?;
    eprintln!("{:?}", notifier.status()?);
    std::thread::sleep(Duration::from_secs(seconds));
    eprintln!("{:?}", notifier.status()?);
    notifier.close();
    Ok(())
}
