//! A poor line to a server: little bandwidth for all connections together, or none at all. The line
//! does not look at the bytes that pass.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// Bytes that are passed on together.
const PIECE_BYTES: usize = 4096;
/// Connections that may wait to be accepted.
const WAITING_MAX: u32 = 64;

/// The quality of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    /// As good as the machine.
    Good,
    /// This many bytes a second, in each direction, for all connections together.
    Slow {
        /// To the server.
        up: u64,
        /// From the server.
        down: u64,
    },
    /// Nothing passes and nothing is closed, as with a cable that was pulled out.
    Dead,
}

/// A port that leads to a server over a line of a given quality. Dropping it ends the line.
#[derive(Debug)]
pub struct Line {
    address: SocketAddr,
    quality: watch::Sender<Quality>,
    counts: Arc<Counts>,
    running: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    /// Notified after each piece that passed.
    passed: watch::Sender<()>,
}

/// One direction's bandwidth: when the next piece may pass.
#[derive(Debug)]
struct Bucket(Mutex<Instant>);

impl Line {
    /// A line to `target`.
    ///
    /// # Panics
    /// There is no port.
    pub fn start(target: SocketAddr, quality: Quality) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket
            .bind("127.0.0.1:0".parse().expect("an address"))
            .expect("a port");
        let listener = socket.listen(WAITING_MAX).expect("the port is ours");
        let address = listener.local_addr().expect("it is bound");
        let (quality, seen) = watch::channel(quality);
        let counts = Arc::new(Counts::default());
        let (up, down) = (Arc::new(Bucket::new()), Arc::new(Bucket::new()));
        let passing = Arc::clone(&counts);
        let running = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                passing.connections.fetch_add(1, Ordering::SeqCst);
                let (seen, counts) = (seen.clone(), Arc::clone(&passing));
                let (up, down) = (Arc::clone(&up), Arc::clone(&down));
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(target).await else {
                        return;
                    };
                    let ((from_client, to_client), (from_server, to_server)) =
                        (client.into_split(), server.into_split());
                    let rate = |quality: Quality| match quality {
                        Quality::Slow { up, .. } => up,
                        Quality::Good | Quality::Dead => 0,
                    };
                    let rate_down = |quality: Quality| match quality {
                        Quality::Slow { down, .. } => down,
                        Quality::Good | Quality::Dead => 0,
                    };
                    // When one direction has ended in order the other goes on.
                    tokio::join!(
                        pass(
                            from_client,
                            to_server,
                            &up,
                            (seen.clone(), rate),
                            (&counts.up, &counts.passed)
                        ),
                        pass(
                            from_server,
                            to_client,
                            &down,
                            (seen, rate_down),
                            (&counts.down, &counts.passed)
                        ),
                    );
                });
            }
        });
        Self {
            address,
            quality,
            counts,
            running,
        }
    }

    /// The address of its near end.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the quality for everything that has not passed yet.
    pub fn set(&self, quality: Quality) {
        self.quality.send_replace(quality);
    }

    /// Connections that were made over it.
    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::SeqCst)
    }

    /// Waits until this many bytes went to the server, while `work` goes on.
    ///
    /// # Panics
    /// `work` is over before.
    pub async fn until_up<F: Future>(&self, bytes: u64, work: F) {
        let mut passed = self.counts.passed.subscribe();
        let reached = passed.wait_for(|()| self.bytes_up() >= bytes);
        tokio::select! {
            reached = reached => drop(reached.expect("the counts live as long as the line")),
            _ = work => panic!("it was over after {} bytes", self.bytes_up()),
        }
    }

    /// Bytes that went to the server.
    pub fn bytes_up(&self) -> u64 {
        self.counts.up.load(Ordering::SeqCst)
    }

    /// Bytes that came from the server.
    pub fn bytes_down(&self) -> u64 {
        self.counts.down.load(Ordering::SeqCst)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Bucket {
    fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    /// The moment at which this many bytes have passed at this rate; without a rate, now.
    fn reserve(&self, bytes: usize, rate: u64) -> Instant {
        let now = Instant::now();
        if rate == 0 {
            return now;
        }
        let mut free = self.0.lock().expect("no holder panics");
        *free = (*free).max(now) + Duration::from_micros(bytes as u64 * 1_000_000 / rate);
        *free
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    bucket: &Bucket,
    (mut quality, rate): (watch::Receiver<Quality>, impl Fn(Quality) -> u64),
    (count, passed): (&AtomicU64, &watch::Sender<()>),
) {
    let mut piece = [0; PIECE_BYTES];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        let now = *quality.borrow();
        sleep_until(bucket.reserve(length, rate(now))).await;
        if quality
            .wait_for(|quality| *quality != Quality::Dead)
            .await
            .is_err()
        {
            return;
        }
        if to.write_all(&piece[..length]).await.is_err() {
            return;
        }
        count.fetch_add(length as u64, Ordering::SeqCst);
        passed.send_replace(());
    }
}
