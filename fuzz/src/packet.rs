//! IP packets, read and summed in the plainest way. Nothing here is shared with the code under test.

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// Where things are in an IP packet.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub is_ipv4: bool,
    /// Bytes of the IP header.
    pub header_len: usize,
    /// Bytes of the packet by its own account; there may be more.
    pub len: usize,
    pub protocol: u8,
    /// Where the time to live (hop limit) stands.
    pub ttl_at: usize,
    /// Not the first of its fragments, or not the last. IPv6 says so by the protocol.
    pub is_fragment: bool,
}

impl Layout {
    /// `None` unless `packet` begins with an IP header and holds all that it announces.
    pub fn of(packet: &[u8]) -> Option<Self> {
        let layout = match packet.first()? >> 4 {
            4 if packet.len() >= 20 => Self {
                is_ipv4: true,
                header_len: usize::from(packet[0] % 16) * 4,
                len: usize::from(word(packet, 2)),
                protocol: packet[9],
                ttl_at: 8,
                is_fragment: word(packet, 6) & 0x3fff != 0,
            },
            6 if packet.len() >= 40 => Self {
                is_ipv4: false,
                header_len: 40,
                len: 40 + usize::from(word(packet, 4)),
                protocol: packet[6],
                ttl_at: 7,
                is_fragment: false,
            },
            _ => return None,
        };
        let header_fits = layout.header_len >= 20 && layout.header_len <= layout.len;
        (header_fits && layout.len <= packet.len()).then_some(layout)
    }

    /// Bytes of IP and transport header, where this is TCP or UDP with all of its header.
    pub fn headers_len(&self, packet: &[u8]) -> Option<usize> {
        let transport = &packet[self.header_len..self.len];
        let len = match self.protocol {
            TCP => usize::from(*transport.get(12)? / 16) * 4,
            UDP => 8,
            _ => return None,
        };
        let least = if self.protocol == TCP { 20 } else { 8 };
        (len >= least && len <= transport.len()).then_some(self.header_len + len)
    }

    /// Where the checksum stands in the header of TCP or UDP.
    pub fn checksum_offset(&self) -> usize {
        if self.protocol == TCP { 16 } else { 6 }
    }

    /// The pseudo-header of RFC 9293, or RFC 8200 where the sum is the same.
    pub fn pseudo_header(&self, packet: &[u8]) -> Vec<u8> {
        let addresses = if self.is_ipv4 { &packet[12..20] } else { &packet[8..40] };
        let len = (self.len - self.header_len) as u16;
        [addresses, &[0, self.protocol], &len.to_be_bytes()].concat()
    }

    /// The transport's checksum over all of the packet, the field as it is: zero if that is right.
    fn transport_checksum(&self, packet: &[u8]) -> u16 {
        checksum(&[&self.pseudo_header(packet), &packet[self.header_len..self.len]].concat())
    }
}

pub fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from(bytes[at]) << 8 | u16::from(bytes[at + 1])
}

pub fn double_word(bytes: &[u8], at: usize) -> u32 {
    u32::from(word(bytes, at)) << 16 | u32::from(word(bytes, at + 2))
}

pub fn put(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Makes the lengths say what there is: of IP, and of UDP.
pub fn fit_lengths(packet: &mut Vec<u8>) {
    packet.truncate(0xffff);
    let len = packet.len() as u16;
    match packet.first().map_or(0, |first| first / 16) {
        4 if packet.len() >= 20 => put(packet, 2, len),
        6 if packet.len() >= 40 => put(packet, 4, len - 40),
        _ => return,
    }
    if let Some(layout) = Layout::of(packet).filter(|layout| layout.protocol == UDP)
        && layout.headers_len(packet).is_some()
    {
        put(packet, layout.header_len + 4, len - layout.header_len as u16);
    }
}

/// Makes lengths and checksums right, as far as there is a place for them.
pub fn seal(packet: &mut Vec<u8>) {
    fit_lengths(packet);
    let Some(layout) = Layout::of(packet) else { return };
    if layout.is_ipv4 {
        put(packet, 10, 0);
        let sum = checksum(&packet[..layout.header_len]);
        put(packet, 10, sum);
    }
    if layout.headers_len(packet).is_some() {
        let at = layout.header_len + layout.checksum_offset();
        put(packet, at, 0);
        let sum = layout.transport_checksum(packet);
        put(packet, at, if layout.protocol == UDP && sum == 0 { 0xffff } else { sum });
    }
}

/// Whether all lengths and checksums of a TCP or UDP packet are right.
pub fn is_right(packet: &[u8]) -> bool {
    let Some(layout) = Layout::of(packet) else { return false };
    let at = layout.header_len;
    let udp = || usize::from(word(packet, at + 4)) == layout.len - at && word(packet, at + 6) != 0;
    layout.len == packet.len()
        && layout.headers_len(packet).is_some()
        && (!layout.is_ipv4 || checksum(&packet[..at]) == 0)
        && layout.transport_checksum(packet) == 0
        && (layout.protocol != UDP || udp())
}

/// Checks that `after` is what a router makes of `before`: one less to live, and a header checksum that is right, or
/// wrong, by as much as it was.
pub fn assert_forwarded(before: &[u8], after: &[u8]) {
    let layout = Layout::of(before).expect("what is no whole IP packet was forwarded");
    assert!(before[layout.ttl_at] > 1, "forwarded at the end of its life");
    let mut expected = before.to_vec();
    expected[layout.ttl_at] -= 1;
    if layout.is_ipv4 {
        // Zero and 0xffff are one number.
        let residue = |packet: &[u8]| checksum(&packet[..layout.header_len]) % 0xffff;
        assert_eq!(residue(before), residue(after), "header checksum\n{before:02x?}\n{after:02x?}");
        expected[10..12].copy_from_slice(&after[10..12]);
    }
    assert_eq!(expected, after, "more than the time to live was changed");
}
