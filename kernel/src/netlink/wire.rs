//! The layout common to all netlink messages (`netlink(7)`), read in place.

/// Bytes of a `struct nlmsghdr`, which begins every message.
pub(crate) const HEADER_BYTES: usize = 16;

/// `nlmsg_type` of an answer that is an error number, with 0 for success.
pub(crate) const ERROR: u16 = libc::NLMSG_ERROR as u16;

/// `nlmsg_type` at the end of a dump.
pub(crate) const DONE: u16 = libc::NLMSG_DONE as u16;

/// A message with inconsistent lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a netlink message is cut off")]
pub(crate) struct CutOff;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// `RTM_*`, [`ERROR`] or [`DONE`].
    pub(crate) kind: u16,
    /// `NLM_F_*`.
    pub(crate) flags: u16,
    /// The sequence number of the request that this answers.
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

/// The messages in one received datagram.
#[derive(Debug, Clone)]
pub(crate) struct Frames<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, CutOff>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let length = u32_at(self.0, 0).map_or(0, |length| length as usize);
        if length < HEADER_BYTES || length > self.0.len() {
            self.0 = &[];
            return Some(Err(CutOff));
        }
        let (message, rest) = self.0.split_at(length);
        self.0 = rest.get(aligned(length) - length..).unwrap_or_default();
        Some(Ok(Frame {
            kind: u16_at(message, 4).unwrap_or_default(),
            flags: u16_at(message, 6).unwrap_or_default(),
            sequence: u32_at(message, 8).unwrap_or_default(),
            body: &message[HEADER_BYTES..],
        }))
    }
}

/// The attributes in `bytes`: the type of each, without the bits for nesting and byte order, and its value. Ends if
/// truncated.
#[derive(Debug, Clone)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// Returns the attributes after a fixed part of `bytes`.
    pub(crate) fn behind(body: &'a [u8], bytes: usize) -> Self {
        Self(body.get(bytes..).unwrap_or_default())
    }

    /// Returns the value of the first attribute of a type.
    pub(crate) fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(found, value)| (found == kind).then_some(value))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        const FLAGS: u16 = (libc::NLA_F_NESTED | libc::NLA_F_NET_BYTEORDER) as u16;
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & !FLAGS;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// An error in answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// `errno(3)`, positive.
    pub(crate) errno: i32,
    /// The kernel's explanation (`NLMSGERR_ATTR_MSG`), if any.
    pub(crate) text: Option<String>,
}

/// Returns the error in an answer of type [`ERROR`]; `None` for success.
pub(crate) fn refusal(frame: &Frame<'_>) -> Result<Option<Refusal>, CutOff> {
    const NLM_F_CAPPED: u16 = 0x100;
    const NLM_F_ACK_TLVS: u16 = 0x200;
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let code = u32_at(frame.body, 0).ok_or(CutOff)?.cast_signed();
    if code == 0 {
        return Ok(None);
    }
    let text = (frame.flags & NLM_F_ACK_TLVS != 0).then(|| {
        // The error number is followed by the request, or only by its header.
        let request = if frame.flags & NLM_F_CAPPED != 0 {
            HEADER_BYTES
        } else {
            u32_at(frame.body, 4).map_or(usize::MAX, |length| aligned(length as usize))
        };
        let text = Attributes::behind(frame.body, request.saturating_add(4)).find(NLMSGERR_ATTR_MSG)?;
        Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
    });
    Ok(Some(Refusal { errno: code.saturating_neg(), text: text.flatten().filter(|text| !text.is_empty()) }))
}

/// Returns the number at `offset`, in host order.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// Returns the number at `offset`, in host order.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// Rounds up: messages and attributes begin at multiples of four.
fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::test_bytes::bytes;

    #[test]
    fn several_messages_are_told_apart() {
        // A dump of next hops from Linux 6.18, with its end.
        let dump = bytes(
            "3000000068000200010000009455000002fd660004000000080001000003050a0800050004000000080006000a050300\
             1400000003000200010000009455000000000000",
        );
        let frames: Vec<_> = Frames(&dump).collect::<Result<_, _>>().unwrap();
        assert_eq!(frames.iter().map(|frame| frame.kind).collect::<Vec<_>>(), [104, DONE]);
        assert_eq!((frames[0].flags, frames[0].sequence, frames[0].body.len()), (2, 1, 32));
        let attributes: Vec<_> = Attributes::behind(frames[0].body, 8).map(|(kind, _)| kind).collect();
        assert_eq!(attributes, [1, 5, 6]);
        assert_eq!(Frames(&dump[..60]).last(), Some(Err(CutOff)));
    }

    #[test]
    fn an_error_comes_with_the_kernels_words() {
        // From Linux 6.18, in answer to a route with a missing next hop object.
        let answer = bytes(
            "4400000002000003010000003f5a0000eaffffff2c0000001800050601000000000000001e0001004e657874686f702069642\
             0646f6573206e6f7420657869737400000000",
        );
        let frame = Frames(&answer).next().unwrap().unwrap();
        let refusal = refusal(&frame).unwrap().unwrap();
        assert_eq!(refusal.errno, libc::EINVAL);
        assert_eq!(refusal.text.as_deref(), Some("Nexthop id does not exist"));
    }

    #[test]
    fn an_error_may_come_without_words() {
        let answer = bytes("2400000002000001020000003f5a0000feffffff200000006a0001000200000000000000");
        let frame = Frames(&answer).next().unwrap().unwrap();
        assert_eq!(refusal(&frame), Ok(Some(Refusal { errno: libc::ENOENT, text: None })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..128), length in 0..256u32) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_chunk_mut() {
                *first = length.to_ne_bytes();
            }
            for frame in Frames(&bytes).flatten() {
                let _ = refusal(&frame);
                prop_assert!(Attributes(frame.body).map(|(_, value)| value.len()).sum::<usize>() <= bytes.len());
            }
        }
    }
}
