//! Reading a journal: rows in order, decoded on several threads, handed over in order.
//!
//! A resume waits for this, and nearly all of it is decoding. So a long journal is decoded in chunks on as many threads as help, while
//! the caller folds what is decoded already.

use super::Store;
use super::error::StoreError;
use super::run::run_no;
use super::schema::SEQ_BITS;
use super::writer::position;
use cdpipe_model::RunId;
use cdpipe_model::record::Record;
use rusqlite::{Connection, Rows};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Bytes of rows that a thread decodes at a time.
const CHUNK_BYTES: usize = 128 << 10;

/// More threads than this decode faster than anyone folds.
const MAX_THREADS: usize = 4;

/// Chunks that one thread may have waiting on either side of it.
const CHUNKS_AHEAD: usize = 2;

/// A batch as it is in the database.
struct Raw {
    seq: u64,
    count: u64,
    at_ms: u64,
    json: Vec<u8>,
}

/// A batch decoded.
struct Decoded {
    seq: u64,
    at_ms: u64,
    records: Vec<Record>,
}

type Chunk = Vec<Result<Decoded, (u64, String)>>;

impl Store {
    /// Hands every record after `after` to `each`, in order, with its number (from 1) and the time it was decided (milliseconds
    /// since 1970). Answers the number of the last record.
    ///
    /// # Errors
    /// `UnknownRun`; `Unreadable` at a gap or a record that does not decode; a damaged database.
    pub fn read(
        &self,
        run: &RunId,
        after: u64,
        each: impl FnMut(u64, u64, Record),
    ) -> Result<u64, StoreError> {
        let conn = self.conn();
        let fault = |error: rusqlite::Error| self.fault(&error);
        let run_no = run_no(&conn, run).map_err(fault)?.ok_or_else(|| self.unknown(run))?;
        let (first, end) = (position(run_no, 0), position(run_no + 1, 0));
        let start = start_of(&conn, first, position(run_no, after + 1)).map_err(fault)?;
        let mut query = conn
            .prepare_cached(
                "SELECT pos, count, at_ms, json FROM batches WHERE pos >= ?1 AND pos < ?2 ORDER BY pos",
            )
            .map_err(fault)?;
        let rows = query.query([start.unwrap_or(first), end]).map_err(fault)?;
        let mut fold = Fold { run, each, after, expected: start.is_none().then_some(1), last: after };
        self.read_chunks(Chunks { rows, is_over: false }, &mut fold)?;
        Ok(fold.last)
    }

    fn read_chunks<F: FnMut(u64, u64, Record)>(
        &self,
        mut chunks: Chunks<'_>,
        fold: &mut Fold<'_, F>,
    ) -> Result<(), StoreError> {
        let fault = |error: rusqlite::Error| self.fault(&error);
        let first = chunks.next().map_err(fault)?;
        if chunks.is_over {
            // Short: no threads for it.
            return fold.chunk(decode(first));
        }
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        std::thread::scope(|scope| {
            let lanes: Vec<(SyncSender<Vec<Raw>>, Receiver<Chunk>)> = (0..threads)
                .map(|_| {
                    let (raw, todo) = sync_channel::<Vec<Raw>>(CHUNKS_AHEAD);
                    let (done, decoded) = sync_channel(CHUNKS_AHEAD);
                    // Ends when either side of it is gone: this function may return early with an error.
                    scope.spawn(move || todo.into_iter().all(|rows| done.send(decode(rows)).is_ok()));
                    (raw, decoded)
                })
                .collect();
            let lost = || StoreError::Closed { path: self.path.clone() };
            // Chunk after chunk goes to one lane after the other and is taken back in the same order.
            let mut waiting = VecDeque::new();
            let mut lane_of_next = lanes.iter().cycle();
            let mut chunk = Some(first);
            while chunk.is_some() || !waiting.is_empty() {
                if let Some(rows) = chunk.take() {
                    let lane = lane_of_next.next().ok_or_else(lost)?;
                    lane.0.send(rows).map_err(|_gone| lost())?;
                    waiting.push_back(lane);
                    if !chunks.is_over {
                        chunk = Some(chunks.next().map_err(fault)?);
                    }
                }
                // As many are under way as the lanes hold without blocking, or all that are left.
                if (chunk.is_none() || waiting.len() >= threads * CHUNKS_AHEAD)
                    && let Some(lane) = waiting.pop_front()
                {
                    fold.chunk(lane.1.recv().map_err(|_gone| lost())?)?;
                }
            }
            Ok(())
        })
    }
}

/// Where the batch begins that holds the record at `wanted`, if one does.
fn start_of(conn: &Connection, first: i64, wanted: i64) -> Result<Option<i64>, rusqlite::Error> {
    conn.prepare_cached("SELECT max(pos) FROM batches WHERE pos > ?1 + 1 AND pos <= ?2")?
        .query_row([first, wanted], |row| row.get(0))
}

/// Rows, some at a time.
struct Chunks<'a> {
    rows: Rows<'a>,
    is_over: bool,
}

impl Chunks<'_> {
    fn next(&mut self) -> Result<Vec<Raw>, rusqlite::Error> {
        let mut chunk = Vec::new();
        let mut bytes = 0;
        while bytes < CHUNK_BYTES {
            let Some(row) = self.rows.next()? else {
                self.is_over = true;
                break;
            };
            let pos: i64 = row.get(0)?;
            let seq = u64::try_from(pos & ((1 << SEQ_BITS) - 1)).unwrap_or(0);
            let json: Vec<u8> = row.get(3)?;
            bytes += json.len();
            chunk.push(Raw { seq, count: row.get(1)?, at_ms: row.get(2)?, json });
        }
        Ok(chunk)
    }
}

fn decode(rows: Vec<Raw>) -> Chunk {
    rows.into_iter()
        .map(|raw| {
            let records: Vec<Record> =
                serde_json::from_slice(&raw.json).map_err(|error| (raw.seq, error.to_string()))?;
            if records.len() as u64 == raw.count {
                Ok(Decoded { seq: raw.seq, at_ms: raw.at_ms, records })
            } else {
                Err((raw.seq, format!("{} records where {} were written", records.len(), raw.count)))
            }
        })
        .collect()
}

/// The caller's end.
struct Fold<'a, F> {
    run: &'a RunId,
    each: F,
    after: u64,
    /// Number that the next batch must begin with; `None` if the first one may begin anywhere.
    expected: Option<u64>,
    last: u64,
}

impl<F: FnMut(u64, u64, Record)> Fold<'_, F> {
    fn chunk(&mut self, chunk: Chunk) -> Result<(), StoreError> {
        let unreadable = |seq, detail| StoreError::Unreadable { run: self.run.clone(), seq, detail };
        for batch in chunk {
            let seq = match &batch {
                Ok(Decoded { seq, .. }) | Err((seq, _)) => *seq,
            };
            if let Some(expected) = self.expected.filter(|expected| *expected != seq) {
                return Err(unreadable(seq, format!("record {expected} is missing")));
            }
            let Decoded { at_ms, records, .. } = batch.map_err(|(seq, detail)| unreadable(seq, detail))?;
            for (number, record) in (seq..).zip(records) {
                if number > self.after {
                    (self.each)(number, at_ms, record);
                }
                self.last = number;
            }
            self.expected = Some(self.last + 1);
        }
        Ok(())
    }
}
