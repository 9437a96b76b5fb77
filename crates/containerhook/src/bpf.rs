//! The one BPF object, and how its programs reach the kernel.
//!
//! The object is compiled by `cargo xtask bpf` and committed, so that a user needs neither clang nor libelf. Nothing is
//! loaded before a part asks for it, and each program is loaded on its own: a kernel that refuses one refuses only that
//! one. What is needed to load (the kernel's type information, 39 MB at its peak) is given back when the [`Loader`] is
//! dropped; a part keeps the descriptors of its maps and of its attachment, and nothing else.
//!
//! Everything here opens descriptors, so it belongs on the engine's side.

use std::fmt::Write as _;

use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, RingBuf};
use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, RawTracePoint};
use aya::{Btf, Ebpf, EbpfLoader};

/// Little-endian, for x86_64 and aarch64 alike.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../bpf/containerhook.bpf.o");

/// Why a part could not be had from the kernel, in words for the user.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(String);

impl Refused {
    /// The words of an error and of its sources. The verifier's log can be a megabyte: cut.
    fn new(what: &str, error: &dyn std::error::Error) -> Refused {
        let mut text = format!("{what}: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                let _ = write!(text, ": {cause_text}");
            }
            source = cause.source();
        }
        if let Some((end, _)) = text.char_indices().nth(600) {
            text.truncate(end);
            text.push('…');
        }
        Refused(text)
    }
}

/// Hands out maps and attached programs of the object. Free until the first use; drop it when all parts have what they
/// need.
#[derive(Default)]
pub(crate) struct Loader {
    state: State,
    sizes: Vec<(&'static str, u32)>,
    globals: Vec<(&'static str, i64)>,
}

#[derive(Default)]
enum State {
    #[default]
    Unused,
    Open(Box<Open>),
    Refused(Refused),
}

struct Open {
    ebpf: Ebpf,
    /// The kernel's types; absent where it was built without them, and then only `raw_tp` programs without relocations
    /// could be loaded, of which there are none.
    btf: Btf,
}

impl Loader {
    /// A loader that has not asked the kernel for anything yet.
    pub(crate) fn new() -> Loader {
        Loader::default()
    }

    /// With another size for one map, to see what happens when it is full.
    #[cfg(test)]
    pub(crate) fn with_size(mut self, map: &'static str, entries: u32) -> Loader {
        self.sizes.push((map, entries));
        self
    }

    /// With a value for one constant of the object. Has an effect only before the first use.
    pub(crate) fn set_global(&mut self, name: &'static str, value: i64) {
        self.globals.push((name, value));
    }

    fn open(&mut self) -> Result<&mut Open, Refused> {
        if let State::Unused = self.state {
            self.state = match Self::load(&self.sizes, &self.globals) {
                Ok(open) => State::Open(Box::new(open)),
                Err(refused) => State::Refused(refused),
            };
        }
        match &mut self.state {
            State::Open(open) => Ok(open),
            State::Refused(refused) => Err(refused.clone()),
            State::Unused => Err(Refused("the BPF object was not loaded".to_owned())),
        }
    }

    fn load(sizes: &[(&'static str, u32)], globals: &[(&'static str, i64)]) -> Result<Open, Refused> {
        // `EbpfLoader::new` parses the kernel's types for itself; that copy is gone before ours is made.
        let ebpf = {
            let mut loader = EbpfLoader::new();
            for (map, entries) in sizes {
                loader.map_max_entries(map, *entries);
            }
            for (name, value) in globals {
                loader.override_global(name, value, true);
            }
            loader.load(OBJECT).map_err(|error| Refused::new("load the BPF object", &error))?
        };
        let btf = Btf::from_sys_fs()
            .map_err(|error| Refused::new("read /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)", &error))?;
        Ok(Open { ebpf, btf })
    }

    /// Takes a map out of the object. Each can be taken once.
    fn map(&mut self, name: &'static str) -> Result<Map, Refused> {
        self.open()?.ebpf.take_map(name).ok_or_else(|| Refused(format!("BPF map {name} is taken already")))
    }

    /// Takes a hash table.
    pub(crate) fn hash<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
    ) -> Result<HashMap<MapData, K, V>, Refused> {
        let map = self.map(name)?;
        HashMap::try_from(map).map_err(|error| Refused::new(name, &error))
    }

    /// Takes an array.
    pub(crate) fn array<V: Pod>(&mut self, name: &'static str) -> Result<Array<MapData, V>, Refused> {
        let map = self.map(name)?;
        Array::try_from(map).map_err(|error| Refused::new(name, &error))
    }

    /// Takes a ring buffer.
    pub(crate) fn ring(&mut self, name: &'static str) -> Result<RingBuf<MapData>, Refused> {
        let map = self.map(name)?;
        RingBuf::try_from(map).map_err(|error| Refused::new(name, &error))
    }

    /// Attaches to a tracepoint: `btf`, a `tp_btf` program, or where the kernel refuses that, `raw`, a `raw_tp` one that
    /// does the same. The attachment ends when the link is dropped.
    pub(crate) fn attach(&mut self, tracepoint: &str, btf: &str, raw: &str) -> Result<FdLink, Refused> {
        let open = self.open()?;
        match open.attach_btf(tracepoint, btf) {
            Ok(link) => Ok(link),
            Err(first) => open
                .attach_raw(tracepoint, raw)
                .map_err(|second| Refused(format!("tp_btf: {first}; raw_tp: {second}"))),
        }
    }
}

impl Open {
    fn attach_btf(&mut self, tracepoint: &str, name: &str) -> Result<FdLink, Refused> {
        let refused = |error| Refused::new(&format!("BPF program {name}"), &error);
        let program: &mut BtfTracePoint = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| Refused(format!("no BPF program {name}")))?
            .try_into()
            .map_err(refused)?;
        program.load(tracepoint, &self.btf).map_err(refused)?;
        let id = program.attach().map_err(refused)?;
        Ok(program.take_link(id).map_err(refused)?.into())
    }

    fn attach_raw(&mut self, tracepoint: &str, name: &str) -> Result<FdLink, Refused> {
        let refused = |error| Refused::new(&format!("BPF program {name}"), &error);
        let program: &mut RawTracePoint = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| Refused(format!("no BPF program {name}")))?
            .try_into()
            .map_err(refused)?;
        program.load().map_err(refused)?;
        let id = program.attach(tracepoint).map_err(refused)?;
        Ok(program.take_link(id).map_err(refused)?.into())
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        if let State::Open(_) = std::mem::take(&mut self.state) {
            give_back();
        }
    }
}

/// glibc keeps freed memory; parsing leaves tens of megabytes of it behind.
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes no pointers and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
