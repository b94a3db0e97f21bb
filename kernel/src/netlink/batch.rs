//! Cutting many changes into batches that the kernel takes in one go.

use super::message::Message;

/// Most changes in a batch. The kernel answers all of them before we can read the first answer, so that many
/// acknowledgements (about 0.8 KiB of kernel memory each) must fit in the default receive buffer of 208 KiB.
const MOST_MESSAGES: usize = 128;

/// Most bytes in a batch: one datagram, well below the default send buffer of 208 KiB.
const MOST_BYTES: usize = 32 * 1024;

/// Changes on their way to the kernel, each with what belongs to it.
#[derive(Debug)]
pub(super) struct Batch<T> {
    owners: Vec<T>,
    messages: Vec<Message>,
    bytes: usize,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self { owners: Vec::new(), messages: Vec::new(), bytes: 0 }
    }
}

impl<T> Batch<T> {
    /// Adds a change. If it does not fit, the batch so far is handed out to be sent, and the change begins the next.
    #[must_use]
    pub(super) fn push(&mut self, owner: T, message: Message) -> Option<Self> {
        let bytes = message.buffer_len();
        let fits = self.messages.is_empty()
            || (self.messages.len() < MOST_MESSAGES && self.bytes + bytes <= MOST_BYTES);
        let full = (!fits).then(|| std::mem::take(self));
        self.owners.push(owner);
        self.messages.push(message);
        self.bytes += bytes;
        full
    }

    /// What belongs to the changes, and the changes, in order.
    pub(super) fn into_parts(self) -> (Vec<T>, Vec<Message>) {
        (self.owners, self.messages)
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};

    use super::*;

    fn message(bytes: usize) -> Message {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfAlias("x".repeat(bytes)));
        let payload = NetlinkPayload::InnerMessage(RouteNetlinkMessage::SetLink(link));
        NetlinkMessage::new(NetlinkHeader::default(), payload)
    }

    /// What comes out for changes of these sizes: the batches, each with the numbers of its changes and its bytes.
    fn cut(sizes: impl IntoIterator<Item = usize>) -> Vec<(Vec<usize>, usize)> {
        let mut batch = Batch::default();
        let mut full = Vec::new();
        for (number, size) in sizes.into_iter().enumerate() {
            full.extend(batch.push(number, message(size)));
        }
        full.push(batch);
        full.into_iter().map(|batch| (batch.owners, batch.bytes)).collect()
    }

    #[test]
    fn ten_thousand_small_changes_are_cut_by_number_and_none_is_lost() {
        let batches = cut(std::iter::repeat_n(8, 10_000));
        assert_eq!(batches.len(), 10_000usize.div_ceil(MOST_MESSAGES));
        assert!(batches.iter().all(|(numbers, _)| numbers.len() <= MOST_MESSAGES));
        assert!(batches.into_iter().flat_map(|(numbers, _)| numbers).eq(0..10_000));
    }

    #[test]
    fn large_changes_are_cut_by_size() {
        let batches = cut(std::iter::repeat_n(1000, 100));
        assert_eq!(batches.len(), 4);
        for (_, bytes) in &batches {
            assert!(*bytes <= MOST_BYTES, "{bytes} bytes");
        }
        assert!(batches.into_iter().flat_map(|(numbers, _)| numbers).eq(0..100));
    }

    #[test]
    fn one_that_is_too_large_by_itself_goes_alone() {
        let numbers: Vec<_> = cut([1, 40_000, 1]).into_iter().map(|(numbers, _)| numbers).collect();
        assert_eq!(numbers, [[0], [1], [2]]);
    }
}
