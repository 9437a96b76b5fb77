//! The object, relocated for this kernel: its maps exist, and its programs can be given to the kernel one by one.
//!
//! Parsing and relocating is aya's. Its `EbpfLoader` is not used, for it parses all types of the kernel: see `types.rs`.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use aya::maps::{Map, MapData};
use aya_obj::btf::Btf;
use aya_obj::generated::{BPF_F_NO_PREALLOC, bpf_insn, bpf_map_type};
use aya_obj::maps::Map as Definition;

use super::types::{Kind, Types};
use super::{Clock, Refused, shorten, sys};

/// Little-endian, for x86_64 and aarch64 alike.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/containerhook.bpf.o");

const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";

/// How long a verifier's log may be.
const LOG: usize = 256 << 10;

pub(super) struct Object {
    object: aya_obj::Object,
    maps: HashMap<String, (Definition, MapData)>,
    /// The numbers of the kernel's types for the tracepoints that programs may be loaded for.
    tracepoints: HashMap<&'static str, u32>,
}

/// The tracepoints of `tp_btf` programs.
const TRACEPOINTS: [&str; 4] =
    ["sched_process_exec", "sched_process_fork", "sched_process_exit", "mark_victim"];

impl Object {
    /// Parses it, relocates it for this kernel, and makes its maps, with other sizes for those that are named, and other
    /// values for the constants that are.
    pub(super) fn open(
        sizes: &[(&'static str, u32)],
        constants: &[(&'static str, u32)],
    ) -> Result<Object, Refused> {
        let refused = |error: &dyn std::error::Error| Refused::new("load the BPF object", error);
        let mut object = parse(constants).map_err(|error| refused(&error))?;
        let mut tracepoints = HashMap::new();
        // Types and their file are gone before anything is made.
        {
            let named = |error: io::Error| {
                Refused::new(&format!("read {KERNEL_TYPES} (CONFIG_DEBUG_INFO_BTF)"), &error)
            };
            let bytes = fs::read(KERNEL_TYPES).map_err(named)?;
            let all = Types::parse(&bytes).map_err(named)?;
            for tracepoint in TRACEPOINTS {
                let name = format!("btf_trace_{tracepoint}");
                if let Some(id) = all.find(Kind::Typedef, name.as_bytes()) {
                    tracepoints.insert(tracepoint, id);
                }
            }
            relocate(&mut object, &all)?;
        }
        let mut maps = HashMap::new();
        for (name, mut map) in object.maps.drain() {
            if let Some((_, entries)) = sizes.iter().find(|(map, _)| *map == name) {
                map.set_max_entries(*entries);
            }
            let made = make(&name, &map)?;
            maps.insert(name, (map, made));
        }
        let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let made = maps.iter().map(|(name, (map, made))| (name.as_str(), made.fd().as_fd().as_raw_fd(), map));
        object.relocate_maps(made, &sections).map_err(|error| refused(&error))?;
        object.relocate_calls(&sections).map_err(|error| refused(&error))?;
        Ok(Object { object, maps, tracepoints })
    }

    /// Takes a map. Each can be taken once.
    pub(super) fn take(&mut self, name: &str) -> Result<Map, Refused> {
        let taken = || Refused(format!("BPF map {name} is taken already, or not there"));
        let (definition, map) = self.maps.remove(name).ok_or_else(taken)?;
        match bpf_map_type::try_from(definition.map_type()) {
            Ok(bpf_map_type::BPF_MAP_TYPE_HASH) => Ok(Map::HashMap(map)),
            Ok(bpf_map_type::BPF_MAP_TYPE_LRU_HASH) => Ok(Map::LruHashMap(map)),
            Ok(bpf_map_type::BPF_MAP_TYPE_ARRAY) => Ok(Map::Array(map)),
            Ok(bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY) => Ok(Map::PerCpuArray(map)),
            Ok(bpf_map_type::BPF_MAP_TYPE_RINGBUF) => Ok(Map::RingBuf(map)),
            _ => Err(Refused(format!("BPF map {name} is of a kind that is not used here"))),
        }
    }

    /// One more descriptor of a map that is not taken yet.
    pub(super) fn descriptor(&self, name: &str) -> Result<OwnedFd, Refused> {
        let taken = || Refused(format!("BPF map {name} is taken already, or not there"));
        let (_, map) = self.maps.get(name).ok_or_else(taken)?;
        map.fd().as_fd().try_clone_to_owned().map_err(|error| Refused::new(name, &error))
    }

    /// Gives a program to the kernel, for a tracepoint of `tp_btf` programs.
    pub(super) fn load_tracing(&self, name: &str, tracepoint: &'static CStr) -> Result<OwnedFd, Refused> {
        let plain = tracepoint.to_str().unwrap_or_default();
        let id = self.tracepoints.get(plain).ok_or_else(|| {
            Refused(format!("tp_btf program {name}: {KERNEL_TYPES} has no tracepoint {plain}"))
        })?;
        self.load("tp_btf", name, sys::Purpose::Tracepoint(*id))
    }

    /// Gives a program to the kernel that may be attached to a raw tracepoint, or run.
    pub(super) fn load_raw(&self, name: &str) -> Result<OwnedFd, Refused> {
        self.load("raw_tp", name, sys::Purpose::RawTracepoint)
    }

    /// Gives a program to the kernel that may be attached to an event of tracefs.
    pub(super) fn load_event(&self, name: &str) -> Result<OwnedFd, Refused> {
        self.load("tracepoint", name, sys::Purpose::Event)
    }

    fn load(&self, kind: &str, name: &str, purpose: sys::Purpose) -> Result<OwnedFd, Refused> {
        let instructions =
            self.instructions(name).ok_or_else(|| Refused(format!("no BPF program {name}")))?;
        let load = |log: &mut [u8]| sys::load(purpose, name, instructions, &self.object.license, log);
        patiently(|| load(&mut [])).map_err(|error| {
            // Once more, to hear why.
            let mut log = vec![0; LOG];
            let _ = patiently(|| load(&mut log));
            let log = String::from_utf8_lossy(log.split(|byte| *byte == 0).next().unwrap_or_default());
            Refused(
                shorten(&format!("{kind} program {name}: {error}: {}", log.trim()))
                    .trim_end_matches([':', ' '])
                    .to_owned(),
            )
        })
    }

    fn instructions(&self, name: &str) -> Option<&[bpf_insn]> {
        let program = self.object.programs.get(name)?;
        Some(&self.object.functions.get(&program.function_key())?.instructions)
    }
}

fn parse(constants: &[(&'static str, u32)]) -> Result<aya_obj::Object, aya_obj::ParseError> {
    let mut object = aya_obj::Object::parse(OBJECT)?;
    let boottime_offset = Clock::new().boottime.to_ne_bytes();
    let values: Vec<[u8; 4]> = constants.iter().map(|(_, value)| value.to_ne_bytes()).collect();
    let constants = constants.iter().zip(&values).map(|((name, _), value)| (*name, (value.as_slice(), true)));
    let all = constants.chain([("boottime_offset", (boottime_offset.as_slice(), true))]);
    object.patch_map_data(all.collect())?;
    Ok(object)
}

/// Where the programs look into structures they look where this kernel has the members.
fn relocate(object: &mut aya_obj::Object, kernel: &Types<'_>) -> Result<(), Refused> {
    let what = "relocate the BPF object";
    let own = object.btf.as_ref().map(Btf::to_bytes).unwrap_or_default();
    let part = Types::parse(&own).map(|own| kernel.part(&own.names()));
    let part = part.map_err(|error| Refused::new(what, &error))?;
    let part = Btf::parse(&part, object.endianness).map_err(|error| Refused::new(what, &error))?;
    object.relocate_btf(&part).map_err(|error| Refused::new(what, &error))
}

/// Since Linux 6.1 maps have an allocator of their own, and one that is not preallocated is as good inside a tracepoint
/// as any. Before, it would call the kernel's general allocator there, which can deadlock: the kernel warns of that once
/// (and a host with `panic_on_warn` would end). No trial tells without the warning, so the version does.
fn flags(definition: &Definition) -> u32 {
    if maps_allocate_safely(&fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()) {
        definition.map_flags()
    } else {
        definition.map_flags() & !BPF_F_NO_PREALLOC
    }
}

fn maps_allocate_safely(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().ok());
    (numbers.next().flatten(), numbers.next().flatten()) >= (Some(6), Some(1))
}

/// Makes a map. Constants are written into theirs, for good.
fn make(name: &str, definition: &Definition) -> Result<MapData, Refused> {
    let constants = definition.section_kind() == aya_obj::EbpfSectionKind::Rodata;
    let data = definition.data().to_vec();
    // Without the types of its keys and values, which only `bpftool` shows: they would have to be loaded too.
    let plain = Definition::new_from_params(
        definition.map_type(),
        definition.key_size(),
        definition.value_size(),
        definition.max_entries(),
        flags(definition),
    );
    let map = MapData::create(plain, name, None).map_err(|error| Refused::new(name, &error))?;
    let write = || {
        if !data.is_empty() {
            sys::write(map.fd().as_fd(), &data)?;
        }
        if constants { sys::freeze(map.fd().as_fd()) } else { Ok(()) }
    };
    write().map_err(|error: io::Error| Refused::new(&format!("BPF map {name}"), &error))?;
    Ok(map)
}

/// The verifier gives up with EAGAIN when a signal is pending, whoever it is for.
fn patiently<T>(mut load: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    const ATTEMPTS: usize = 16;
    for _ in 1..ATTEMPTS {
        match load() {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            result => return result,
        }
    }
    load()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_given_maps_that_are_allocated_at_once() {
        for release in ["6.1.0-50-cloud-amd64", "6.18.44-fc-v782", "7.2", "10.0\n"] {
            assert!(maps_allocate_safely(release), "{release}");
        }
        for release in ["5.10.0-32-cloud-amd64", "5.19.17", "6.0.12-1", "4.18.0-553.el8", "", "what"] {
            assert!(!maps_allocate_safely(release), "{release}");
        }
    }

    /// By all of the kernel's types or by a part of them: the programs come out the same.
    #[test]
    fn a_part_of_the_types_relocates_as_all_of_them_do() {
        let Ok(bytes) = fs::read(KERNEL_TYPES) else {
            return crate::bpf::testing::skipped(
                "bpf::object::a_part_of_the_types_relocates_as_all_of_them_do",
                "this kernel has no CONFIG_DEBUG_INFO_BTF",
            );
        };
        let (mut by_part, mut by_all) = (parse(&[]).unwrap(), parse(&[]).unwrap());
        let before = by_all.clone();
        relocate(&mut by_part, &Types::parse(&bytes).unwrap()).unwrap();
        by_all.relocate_btf(&Btf::parse(&bytes, by_all.endianness).unwrap()).unwrap();
        let code = |object: &aya_obj::Object| -> Vec<(String, Vec<u8>)> {
            let of = |function: &aya_obj::Function| {
                let word = |one: &bpf_insn| {
                    [one.code, one._bitfield_1.get(0, 8) as u8]
                        .into_iter()
                        .chain(one.off.to_ne_bytes())
                        .chain(one.imm.to_ne_bytes())
                };
                (function.name.clone(), function.instructions.iter().flat_map(word).collect())
            };
            object.functions.values().map(of).collect()
        };
        assert_eq!(code(&by_part), code(&by_all));
        assert_ne!(code(&before), code(&by_all));
    }
}
