//! The one binary format of frames, log entries and stored records: little-endian integers and
//! length-prefixed bytes.
//!
//! It must never panic on foreign bytes, never allocate more than the input is long, and never
//! recurse deeper than [`MAX_DEPTH`].

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// How deep values may nest (a transaction within a transaction is one level).
pub const MAX_DEPTH: u32 = 32;

/// The bytes are not what the format says; `what` names the first part that was wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed bytes: {what}")]
pub struct Malformed {
    /// The part of the format that was violated.
    pub what: &'static str,
}

/// Shorthand for an error that names `what`.
pub fn malformed<T>(what: &'static str) -> Result<T, Malformed> {
    Err(Malformed { what })
}

/// A value with a binary form.
pub trait Wire: Sized {
    /// Appends the binary form.
    fn encode(&self, out: &mut BytesMut);
    /// Takes the value from the front of `input`.
    fn decode(input: &mut Reader) -> Result<Self, Malformed>;

    /// The binary form on its own.
    fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode(&mut out);
        out.freeze()
    }

    /// The value from bytes that hold it and nothing else.
    fn from_bytes(bytes: Bytes) -> Result<Self, Malformed> {
        let mut input = Reader::new(bytes);
        let value = Self::decode(&mut input)?;
        input.end()?;
        Ok(value)
    }
}

/// Reads values from the front of a buffer; byte strings share the buffer instead of copying it.
#[derive(Debug)]
pub struct Reader {
    rest: Bytes,
    depth: u32,
}

impl Reader {
    /// Starts at the front of `bytes`.
    pub fn new(bytes: Bytes) -> Self {
        Self { rest: bytes, depth: 0 }
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Fails unless all input was used.
    pub fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { malformed("bytes after the end") }
    }

    /// Takes exactly `len` bytes.
    pub fn take(&mut self, len: usize, what: &'static str) -> Result<Bytes, Malformed> {
        if len > self.rest.len() {
            return malformed(what);
        }
        Ok(self.rest.split_to(len))
    }

    /// Runs `inner` one level deeper, or refuses where the input nests too deep.
    pub fn nested<T>(
        &mut self,
        inner: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<T, Malformed> {
        if self.depth >= MAX_DEPTH {
            return malformed("nested too deep");
        }
        self.depth += 1;
        let value = inner(self);
        self.depth -= 1;
        value
    }
}

macro_rules! wire_int {
    ($($int:ty, $put:ident, $get:ident;)*) => {$(
        impl Wire for $int {
            fn encode(&self, out: &mut BytesMut) {
                out.$put(*self);
            }
            fn decode(input: &mut Reader) -> Result<Self, Malformed> {
                let mut raw = input.take(size_of::<$int>(), concat!("a ", stringify!($int), " is cut short"))?;
                Ok(raw.$get())
            }
        }
    )*};
}
wire_int! {
    u8, put_u8, get_u8;
    u16, put_u16_le, get_u16_le;
    u32, put_u32_le, get_u32_le;
    u64, put_u64_le, get_u64_le;
    i64, put_i64_le, get_i64_le;
}

impl Wire for bool {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u8(u8::from(*self));
    }
    fn decode(input: &mut Reader) -> Result<Self, Malformed> {
        match u8::decode(input)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => malformed("a bool is neither 0 nor 1"),
        }
    }
}

impl Wire for Bytes {
    fn encode(&self, out: &mut BytesMut) {
        let len = u32::try_from(self.len()).expect("byte strings are bounded far below 4 GiB");
        out.put_u32_le(len);
        out.put_slice(self);
    }
    fn decode(input: &mut Reader) -> Result<Self, Malformed> {
        let len = u32::decode(input)? as usize;
        input.take(len, "a byte string is cut short")
    }
}

impl Wire for String {
    fn encode(&self, out: &mut BytesMut) {
        Bytes::copy_from_slice(self.as_bytes()).encode(out);
    }
    fn decode(input: &mut Reader) -> Result<Self, Malformed> {
        let raw = Bytes::decode(input)?;
        String::from_utf8(raw.to_vec()).or(malformed("a text is not UTF-8"))
    }
}

impl<T: Wire> Wire for Option<T> {
    fn encode(&self, out: &mut BytesMut) {
        self.is_some().encode(out);
        if let Some(value) = self {
            value.encode(out);
        }
    }
    fn decode(input: &mut Reader) -> Result<Self, Malformed> {
        if bool::decode(input)? { T::decode(input).map(Some) } else { Ok(None) }
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn encode(&self, out: &mut BytesMut) {
        let len = u32::try_from(self.len()).expect("lists are bounded far below 2^32");
        out.put_u32_le(len);
        for item in self {
            item.encode(out);
        }
    }
    fn decode(input: &mut Reader) -> Result<Self, Malformed> {
        let len = u32::decode(input)? as usize;
        // Every item takes at least a byte, so a count above what is left is a lie.
        if len > input.remaining() {
            return malformed("a list is longer than its bytes");
        }
        input.nested(|input| {
            // Grown as items arrive: an item may be far larger in memory than on the wire.
            let mut items = Vec::new();
            for _ in 0..len {
                items.push(T::decode(input)?);
            }
            Ok(items)
        })
    }
}

/// As without the box; it must not be boxed to hold itself without a bound, see [`MAX_DEPTH`].
impl<T: Wire> Wire for Box<T> {
    fn encode(&self, out: &mut BytesMut) {
        T::encode(self, out);
    }
    fn decode(input: &mut Reader) -> Result<Self, Malformed> {
        T::decode(input).map(Box::new)
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn encode(&self, out: &mut BytesMut) {
        self.0.encode(out);
        self.1.encode(out);
    }
    fn decode(input: &mut Reader) -> Result<Self, Malformed> {
        Ok((A::decode(input)?, B::decode(input)?))
    }
}

impl<T: Wire, E: Wire> Wire for Result<T, E> {
    fn encode(&self, out: &mut BytesMut) {
        self.is_ok().encode(out);
        match self {
            Ok(value) => value.encode(out),
            Err(error) => error.encode(out),
        }
    }
    fn decode(input: &mut Reader) -> Result<Self, Malformed> {
        if bool::decode(input)? { T::decode(input).map(Ok) } else { E::decode(input).map(Err) }
    }
}

impl Wire for () {
    fn encode(&self, _: &mut BytesMut) {}
    fn decode(_: &mut Reader) -> Result<Self, Malformed> {
        Ok(())
    }
}

/// Writes [`Wire`] for a struct: its fields in the order given.
#[macro_export]
#[doc(hidden)]
macro_rules! wire_struct {
    ($name:ty { $($field:ident),* $(,)? }) => {
        impl $crate::codec::Wire for $name {
            fn encode(&self, out: &mut bytes::BytesMut) {
                $($crate::codec::Wire::encode(&self.$field, out);)*
            }
            fn decode(input: &mut $crate::codec::Reader) -> Result<Self, $crate::codec::Malformed> {
                Ok(Self { $($field: $crate::codec::Wire::decode(input)?),* })
            }
        }
    };
}

/// Writes [`Wire`] for an enum whose variants are units, tuples or structs: a tag byte, then the
/// fields. A tag, once released, keeps its meaning for ever.
#[macro_export]
#[doc(hidden)]
macro_rules! wire_enum {
    ($name:ty { $($tag:literal => $variant:ident $(( $($item:ident),* ))? $({ $($field:ident),* $(,)? })?),* $(,)? }) => {
        impl $crate::codec::Wire for $name {
            fn encode(&self, out: &mut bytes::BytesMut) {
                match self {
                    $(Self::$variant $(( $($item),* ))? $({ $($field),* })? => {
                        $crate::codec::Wire::encode(&($tag as u8), out);
                        $($($crate::codec::Wire::encode($item, out);)*)?
                        $($($crate::codec::Wire::encode($field, out);)*)?
                    })*
                }
            }
            fn decode(input: &mut $crate::codec::Reader) -> Result<Self, $crate::codec::Malformed> {
                input.nested(|input| match <u8 as $crate::codec::Wire>::decode(input)? {
                    $($tag => {
                        $($(let $item = $crate::codec::Wire::decode(input)?;)*)?
                        $($(let $field = $crate::codec::Wire::decode(input)?;)*)?
                        Ok(Self::$variant $(( $($item),* ))? $({ $($field),* })?)
                    })*
                    _ => $crate::codec::malformed(concat!("unknown kind of ", stringify!($name))),
                })
            }
        }
    };
}
pub(crate) use {wire_enum, wire_struct};
