//! A small server with the protocol of whoami: the target of the control on a node's own address, and of tests.
//!
//! It answers each line of a connection, and each datagram.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, Result};
use netns::Namespace;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::worker::{Worker, wait_for_stop};

/// A running server. It ends when this is dropped.
pub struct Server {
    name: Arc<RwLock<String>>,
    worker: Worker<()>,
}

impl Server {
    /// Listens at an address of a namespace, or of that of the caller, over TCP and UDP.
    ///
    /// # Errors
    /// If the address or its port is not free.
    pub fn start(address: SocketAddr, name: &str, namespace: Option<&Namespace>) -> Result<Self> {
        let bind = || {
            let listener = std::net::TcpListener::bind(address)?;
            let socket = std::net::UdpSocket::bind(address)?;
            listener.set_nonblocking(true)?;
            socket.set_nonblocking(true)?;
            Ok::<_, std::io::Error>((listener, socket))
        };
        let bound = namespace.map_or_else(bind, |namespace| namespace.run(bind));
        let (listener, socket) = bound.with_context(|| format!("listen at {address}"))?;
        let name = Arc::new(RwLock::new(name.to_owned()));
        let worker = {
            let name = Arc::clone(&name);
            Worker::start("load-server", namespace, move |stop_rx| serve(listener, socket, name, stop_rx))
        };
        Ok(Self { name, worker })
    }

    /// Changes the name of the server in all later answers, also on open connections.
    pub fn rename(&self, name: &str) {
        name.clone_into(&mut self.name.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Stops the server, and closes open connections.
    ///
    /// # Errors
    /// If the thread failed.
    pub fn stop(self) -> Result<()> {
        self.worker.stop()
    }
}

async fn serve(
    listener: std::net::TcpListener,
    socket: std::net::UdpSocket,
    name: Arc<RwLock<String>>,
    mut stop_rx: watch::Receiver<bool>,
) -> Result<()> {
    let (listener, socket) = (TcpListener::from_std(listener)?, UdpSocket::from_std(socket)?);
    let (mut connections, mut buffer) = (JoinSet::new(), [0; 2048]);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // An error belongs to a client that left the queue.
                if let Ok((stream, client)) = accepted {
                    connections.spawn(serve_connection(stream, client, Arc::clone(&name)));
                }
            }
            received = socket.recv_from(&mut buffer) => {
                // An error belongs to an earlier answer, whose client has ended.
                if let Ok((length, client)) = received {
                    let answer = answer(&name, client, &buffer[..length]);
                    let _ = socket.send_to(answer.as_bytes(), client).await;
                }
            }
            Some(_) = connections.join_next() => {}
            () = wait_for_stop(&mut stop_rx) => return Ok(()),
        }
    }
}

/// Answers until the client closes the connection. An error means that the client has reset it.
async fn serve_connection(stream: TcpStream, client: SocketAddr, name: Arc<RwLock<String>>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut stream, mut line) = (BufReader::with_capacity(256, stream), Vec::new());
    while stream.read_until(b'\n', &mut line).await? > 0 {
        stream.write_all(answer(&name, client, &line).as_bytes()).await?;
        line.clear();
    }
    Ok(())
}

fn answer(name: &RwLock<String>, client: SocketAddr, request: &[u8]) -> String {
    let number = String::from_utf8_lossy(request.trim_ascii().strip_prefix(b"#").unwrap_or_default()).into_owned();
    let name = name.read().unwrap_or_else(PoisonError::into_inner);
    format!("{name} {client} {number}\n")
}
