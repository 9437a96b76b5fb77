//! The part of the kernel's type information (BTF) that the programs refer to.
//!
//! A kernel has some 150,000 types, and the programs know a dozen structures. To parse all of them, as aya's loader does (and
//! twice), took most of the time and of the memory of a start. So the file is passed over once without making
//! anything of what it holds, and what the programs' own types name is written out as type information of its own, a
//! hundredth of the size: that is what the relocations are made by.
//!
//! The format is that of `Documentation/bpf/btf.rst`.

use std::collections::{HashMap, HashSet};
use std::io;

const MAGIC: u16 = 0xeb9f;

/// Bytes of `struct btf_type`, and of one member, of one array and so on behind it.
const TYPE: usize = 12;

/// `BTF_KIND_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Int = 1,
    Ptr,
    Array,
    Struct,
    Union,
    Enum,
    Fwd,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Func,
    FuncProto,
    Var,
    DataSec,
    Float,
    DeclTag,
    TypeTag,
    Enum64,
}

impl Kind {
    fn of(number: u32) -> Option<Kind> {
        use Kind::*;
        let all = [
            Int, Ptr, Array, Struct, Union, Enum, Fwd, Typedef, Volatile, Const, Restrict, Func, FuncProto,
            Var, DataSec, Float, DeclTag, TypeTag, Enum64,
        ];
        all.into_iter().find(|kind| *kind as u32 == number)
    }

    /// The size of each of the `vlen` records behind the type, and of the one that is there whatever `vlen` says.
    fn behind(self) -> (usize, usize) {
        match self {
            Kind::Struct | Kind::Union | Kind::DataSec | Kind::Enum64 => (12, 0),
            Kind::Enum | Kind::FuncProto => (8, 0),
            Kind::Array => (0, 12),
            Kind::Int | Kind::Var | Kind::DeclTag => (0, 4),
            _ => (0, 0),
        }
    }
}

/// Type information as it lies in a file.
pub(super) struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type lies in `types`; the first is `void`, which lies nowhere.
    at: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    info: u32,
    /// A size, or another type.
    word: u32,
    kind: Kind,
    behind: &'a [u8],
}

impl<'a> Types<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> io::Result<Types<'a>> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "it is no type information that is known");
        let magic = bytes.first_chunk::<2>().copied().map(u16::from_ne_bytes);
        let [length, type_at, type_length, string_at, string_length] =
            [4, 8, 12, 16, 20].map(|at| word(bytes, at).map(|word| word as usize));
        let part = |at: Option<usize>, size: Option<usize>| {
            let from = length?.checked_add(at?)?;
            bytes.get(from..from.checked_add(size?)?)
        };
        let types = part(type_at, type_length).filter(|_| magic == Some(MAGIC)).ok_or_else(bad)?;
        let strings = part(string_at, string_length).ok_or_else(bad)?;
        let mut found = Types { types, strings, at: Vec::with_capacity(types.len() / 24) };
        found.at.push(0);
        let mut at = 0;
        while at < types.len() {
            found.at.push(at as u32);
            let size = found.read(at).map(|found| found.behind.len()).ok_or_else(bad)?;
            at += TYPE + size;
        }
        Ok(found)
    }

    fn read(&self, at: usize) -> Option<Type<'a>> {
        let [name, info, other] = [0, 4, 8].map(|field| word(self.types, at + field));
        let info = info?;
        let kind = Kind::of(info >> 24 & 0x1f)?;
        let (each, once) = kind.behind();
        let behind = self.types.get(at + TYPE..at + TYPE + (info & 0xffff) as usize * each + once)?;
        Some(Type { name: name?, info, word: other?, kind, behind })
    }

    fn get(&self, id: u32) -> Option<Type<'a>> {
        if id == 0 { None } else { self.read(*self.at.get(id as usize)? as usize) }
    }

    fn all(&self) -> impl Iterator<Item = (u32, Type<'a>)> {
        (1..self.at.len() as u32).filter_map(|id| Some((id, self.get(id)?)))
    }

    fn name(&self, at: u32) -> &'a [u8] {
        let rest = self.strings.get(at as usize..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// A type's number.
    pub(super) fn find(&self, kind: Kind, name: &[u8]) -> Option<u32> {
        self.all().find(|(_, found)| found.kind == kind && self.name(found.name) == name).map(|(id, _)| id)
    }

    /// The names of the types whose members are known.
    pub(super) fn names(&self) -> HashSet<&'a [u8]> {
        let all = self.all().filter(|(_, found)| is_named_kind(found.kind));
        all.map(|(_, found)| plain(self.name(found.name))).filter(|name| !name.is_empty()).collect()
    }

    /// Type information with what has these names, and what that consists of. What a pointer points to is no part of it.
    pub(super) fn part(&self, names: &HashSet<&[u8]>) -> Vec<u8> {
        let mut part = Part { number: HashMap::new(), order: Vec::new() };
        for (id, found) in self.all() {
            if is_named_kind(found.kind) && names.contains(plain(self.name(found.name))) {
                part.number_of(self, id);
            }
        }
        let mut types = Vec::new();
        let mut strings = Strings { bytes: vec![0], at: HashMap::from([(0, 0)]) };
        let mut next = 0;
        while let Some(id) = part.order.get(next).copied() {
            next += 1;
            self.write(id, &mut part, &mut types, &mut strings);
        }
        let mut bytes = Vec::with_capacity(24 + types.len() + strings.bytes.len());
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        let sizes = [types.len() as u32, strings.bytes.len() as u32];
        for word in [24, 0, sizes[0], sizes[0], sizes[1]] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings.bytes);
        bytes
    }

    fn write(&self, id: u32, part: &mut Part, types: &mut Vec<u8>, strings: &mut Strings) {
        let Some(Type { name, info, word: other, kind, behind }) = self.get(id) else { return };
        let other = match kind {
            Kind::Ptr => 0,
            Kind::Typedef | Kind::Volatile | Kind::Const | Kind::Restrict | Kind::TypeTag => {
                part.number_of(self, other)
            }
            _ => other,
        };
        for word in [strings.copy(self, name), info, other] {
            types.extend(word.to_ne_bytes());
        }
        let (words, _) = behind.as_chunks::<4>();
        for (at, bytes) in words.iter().enumerate() {
            let word = u32::from_ne_bytes(*bytes);
            let word = match (kind, at) {
                (Kind::Struct | Kind::Union, _) if at % 3 == 1 => part.number_of(self, word),
                (Kind::Struct | Kind::Union | Kind::Enum64, _) if at % 3 == 0 => strings.copy(self, word),
                (Kind::Enum, _) if at % 2 == 0 => strings.copy(self, word),
                (Kind::Array, 0 | 1) => part.number_of(self, word),
                _ => word,
            };
            types.extend(word.to_ne_bytes());
        }
    }
}

/// Which types are taken, and as which.
struct Part {
    number: HashMap<u32, u32>,
    order: Vec<u32>,
}

impl Part {
    fn number_of(&mut self, all: &Types<'_>, id: u32) -> u32 {
        use Kind::*;
        // A function is nothing that a structure consists of, nor is a variable.
        let Some(found) = all.get(id) else { return 0 };
        if matches!(found.kind, Func | FuncProto | Var | DataSec | DeclTag) {
            return 0;
        }
        *self.number.entry(id).or_insert_with(|| {
            self.order.push(id);
            self.order.len() as u32
        })
    }
}

struct Strings {
    bytes: Vec<u8>,
    at: HashMap<u32, u32>,
}

impl Strings {
    fn copy(&mut self, from: &Types<'_>, at: u32) -> u32 {
        *self.at.entry(at).or_insert_with(|| {
            let here = self.bytes.len() as u32;
            self.bytes.extend(from.name(at));
            self.bytes.push(0);
            here
        })
    }
}

fn is_named_kind(kind: Kind) -> bool {
    matches!(kind, Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64)
}

/// `name___flavour` is a local idea of `name`.
fn plain(name: &[u8]) -> &[u8] {
    let flavour = name.windows(3).position(|three| three == b"___").filter(|at| *at > 0);
    flavour.map_or(name, |at| &name[..at])
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk::<4>().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct a { int x; struct b *next; struct b in; }`, `struct b { int y; }`, `struct c { int z; }`, by hand.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0a\0b\0c___old\0x\0next\0in\0y\0z\0";
        let at = |name: &str| {
            let name = [b"\0", name.as_bytes(), b"\0"].concat();
            strings.windows(name.len()).position(|found| found == name).unwrap() as u32 + 1
        };
        let kind = |kind: Kind, members: u32| (kind as u32) << 24 | members;
        let words: Vec<u32> = [
            vec![at("c___old"), kind(Kind::Struct, 1), 4, at("z"), 2, 0],
            vec![at("int"), kind(Kind::Int, 0), 4, 32],
            vec![0, kind(Kind::Ptr, 0), 5],
            vec![at("a"), kind(Kind::Struct, 3), 24, at("x"), 2, 0, at("next"), 3, 64, at("in"), 5, 128],
            vec![at("b"), kind(Kind::Struct, 1), 4, at("y"), 2, 0],
        ]
        .concat();
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let sizes = [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32];
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        bytes.extend(sizes.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn a_structure_comes_with_what_it_consists_of_and_nothing_else() {
        let bytes = sample();
        let all = Types::parse(&bytes).unwrap();
        assert_eq!(all.find(Kind::Struct, b"b"), Some(5));
        assert_eq!(all.find(Kind::Typedef, b"b"), None);
        assert_eq!(all.names(), HashSet::from([b"a".as_slice(), b"b", b"c"]));
        let part = all.part(&HashSet::from([b"a".as_slice()]));
        let part = Types::parse(&part).unwrap();
        let names: Vec<&[u8]> = part.all().map(|(_, found)| part.name(found.name)).collect();
        assert_eq!(names, [b"a".as_slice(), b"int", b"", b"b"]);
        let a = part.get(1).unwrap();
        let (members, _) = a.behind.as_chunks::<4>();
        let members: Vec<u32> = members.iter().map(|word| u32::from_ne_bytes(*word)).collect();
        assert_eq!((members[1], members[4], members[7]), (2, 3, 4));
        assert_eq!((members[2], members[5], members[8]), (0, 64, 128));
        assert_eq!(part.get(3).unwrap().word, 0, "what is pointed to is no part");
        assert!(
            all.part(&HashSet::from([b"c".as_slice()])).len() > 24,
            "a flavour is found by its plain name"
        );
    }

    #[test]
    fn what_is_cut_off_or_something_else_is_refused() {
        let bytes = sample();
        for length in 0..bytes.len() {
            assert!(Types::parse(&bytes[..length]).is_err(), "{length} bytes");
        }
        let mut other = bytes.clone();
        other[0] ^= 1;
        assert!(Types::parse(&other).is_err());
        // A kind that is not known has a size that is not known.
        let mut other = bytes;
        other[24 + 4 + 3] = 0x1f;
        assert!(Types::parse(&other).is_err());
    }
}
