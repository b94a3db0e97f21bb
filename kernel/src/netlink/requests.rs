//! Asking the kernel over an rtnetlink socket: one question, a dump, or a batch of changes.

use std::time::Duration;

use futures::{Stream, StreamExt};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_proto::ConnectionHandle;
use netlink_proto::sys::{AsyncSocket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::time::timeout;

use super::message::{self, Message};
use crate::KernelError;
use crate::state::LinkName;

/// How long the kernel may take for the next part of an answer. It answers at once or, out of memory, never: a lost
/// acknowledgement is not sent again.
const LIMIT: Duration = Duration::from_secs(10);

/// How often a dump is begun anew because the table changed while it was read.
const DUMP_ATTEMPTS: usize = 5;

/// A socket for requests, with the task that serves it. The task ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub(super) struct Requests {
    handle: ConnectionHandle<RouteNetlinkMessage>,
}

impl Requests {
    /// Opens the socket in the current network namespace. Must be called in a tokio runtime.
    pub(super) fn open() -> Result<Self, KernelError> {
        let socket_error = |error: std::io::Error| KernelError::Socket(error.to_string());
        let (mut connection, handle, _unsolicited) =
            netlink_proto::new_connection::<RouteNetlinkMessage>(NETLINK_ROUTE).map_err(socket_error)?;
        // We tell answers apart by their sequence number and their end.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        let socket = connection.socket_mut().socket_mut();
        // An error answer without the request in it is smaller, and more of them fit in the receive buffer.
        if let Err(error) = socket.set_cap_ack(true) {
            tracing::debug!(%error, "no short netlink errors on this kernel");
        }
        // With it the kernel filters dumps; without (before 4.20) it sends all, and we drop what is not asked for.
        if let Err(error) = socket.set_netlink_get_strict_chk(true) {
            tracing::debug!(%error, "no filtered netlink dumps on this kernel");
        }
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Asks for one object. An error number is the kernel's answer that there is none, or why it will not say.
    pub(super) async fn one(&self, message: RouteNetlinkMessage) -> Result<RouteNetlinkMessage, KernelError> {
        let mut answers = self.send([request(message, NLM_F_REQUEST)])?;
        match next(&mut answers).await?.payload {
            NetlinkPayload::InnerMessage(answer) => Ok(answer),
            NetlinkPayload::Error(error) if error.code.is_some() => {
                Err(KernelError::Errno(error.raw_code().saturating_neg()))
            }
            other => Err(KernelError::Message(format!("unexpected answer to a request: {other:?}"))),
        }
    }

    /// The device with this name, if there is one.
    pub(super) async fn link(&self, name: LinkName) -> Result<Option<LinkMessage>, KernelError> {
        self.link_answer(message::get_link_by_name(name)).await
    }

    /// The device with this index, if there is one.
    pub(super) async fn link_by_index(&self, index: u32) -> Result<Option<LinkMessage>, KernelError> {
        self.link_answer(message::get_link_by_index(index)).await
    }

    async fn link_answer(&self, request: RouteNetlinkMessage) -> Result<Option<LinkMessage>, KernelError> {
        match self.one(request).await {
            Ok(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link)),
            Ok(other) => Err(KernelError::Message(format!("unexpected answer about a device: {other:?}"))),
            Err(KernelError::Errno(libc::ENODEV)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads a table, and keeps what `read` makes of its entries. All of them are from one moment: a dump in which
    /// the kernel says that the table has changed meanwhile is read again.
    pub(super) async fn dump<T>(
        &self,
        message: RouteNetlinkMessage,
        read: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(entries) = self.dump_once(message.clone(), &read).await? {
                return Ok(entries);
            }
        }
        Err(KernelError::Message(format!(
            "a table of the kernel changed during each of {DUMP_ATTEMPTS} readings"
        )))
    }

    /// `None` if what was read does not fit together.
    async fn dump_once<T>(
        &self,
        message: RouteNetlinkMessage,
        read: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Option<Vec<T>>, KernelError> {
        let mut answers = self.send([request(message, NLM_F_REQUEST | NLM_F_DUMP)])?;
        let mut entries = Vec::new();
        let mut consistent = true;
        loop {
            let answer = next(&mut answers).await?;
            consistent &= answer.header.flags & NLM_F_DUMP_INTR == 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(entry) => entries.extend(read(entry)),
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(KernelError::Errno(done.code.saturating_neg()));
                }
                NetlinkPayload::Done(_) => return Ok(consistent.then_some(entries)),
                NetlinkPayload::Error(error) => {
                    return Err(KernelError::Errno(error.raw_code().saturating_neg()));
                }
                other => return Err(KernelError::Message(format!("unexpected answer to a dump: {other:?}"))),
            }
        }
    }

    /// Sends changes in one go, and returns for each what the kernel said: an error number, or nothing for success.
    ///
    /// An error means that the fate of none of them is known.
    pub(super) async fn change(&self, messages: Vec<Message>) -> Result<Vec<Option<i32>>, KernelError> {
        let count = messages.len();
        let mut answers = self.send(messages)?;
        let mut outcomes = Vec::with_capacity(count);
        while outcomes.len() < count {
            let answer = next(&mut answers).await?;
            if let NetlinkPayload::Error(error) = answer.payload {
                outcomes.push((answer.header.sequence_number, error.code.map(|code| -code.get())));
            }
        }
        in_order(outcomes)
    }

    /// Sends one change.
    pub(super) async fn change_one(&self, message: Message) -> Result<(), KernelError> {
        match self.change(vec![message]).await?[..] {
            [None] => Ok(()),
            [Some(errno)] => Err(KernelError::Errno(errno)),
            _ => Err(KernelError::Message("one request, several answers".to_owned())),
        }
    }

    fn send(
        &self,
        messages: impl IntoIterator<Item = Message>,
    ) -> Result<impl Stream<Item = Message> + Unpin, KernelError> {
        let messages: Vec<Message> = messages.into_iter().collect();
        self.handle
            .request_batch(messages, SocketAddr::new(0, 0))
            .map_err(|error| KernelError::Socket(error.to_string()))
    }
}

/// Whether the socket is of no more use after `error`: what it has still to tell belongs to nobody.
pub(super) fn breaks_socket(error: &KernelError) -> bool {
    matches!(error, KernelError::Socket(_) | KernelError::TimedOut(_))
}

fn request(message: RouteNetlinkMessage, flags: u16) -> Message {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message))
}

async fn next(answers: &mut (impl Stream<Item = Message> + Unpin)) -> Result<Message, KernelError> {
    match timeout(LIMIT, answers.next()).await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(KernelError::Socket("closed while an answer was due".to_owned())),
        Err(_) => Err(KernelError::TimedOut(LIMIT)),
    }
}

/// Puts answers in the order of their requests, which are numbered one after the other.
fn in_order(mut outcomes: Vec<(u32, Option<i32>)>) -> Result<Vec<Option<i32>>, KernelError> {
    outcomes.sort_unstable_by_key(|(number, _)| *number);
    if outcomes.windows(2).any(|pair| pair[0].0.wrapping_add(1) != pair[1].0) {
        return Err(KernelError::Message("answers that belong to no request".to_owned()));
    }
    Ok(outcomes.into_iter().map(|(_, errno)| errno).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_put_in_the_order_of_their_requests() {
        let answers = vec![(9, Some(17)), (7, None), (8, None)];
        assert_eq!(in_order(answers).unwrap(), [None, None, Some(17)]);
    }

    #[test]
    fn an_answer_too_many_leaves_everything_open() {
        assert!(in_order(vec![(7, None), (9, None)]).is_err());
        assert!(in_order(vec![(7, None), (7, None)]).is_err());
    }
}
