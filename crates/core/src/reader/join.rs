//! Joining a run of deltas into as few events as a bound on their size allows.
//!
//! Owns where a text is cut. Invariants: 1. the texts of what comes out are those of what went in, one behind the other; 2. a
//! cut stands between two grapheme clusters, and where it can, between two deltas; 3. a piece carries the seq and time of the
//! last delta that it holds to its end, so that a reader who resumes there misses nothing; 4. only neighbours are joined.

use unicode_segmentation::GraphemeCursor;

use super::merge::{belong_together, extend, text, text_mut};
use crate::event::{Event, Text};

/// One event that [`join`] gives.
#[derive(Debug, Clone, PartialEq)]
pub enum Joined {
    /// The event at this index, as it is.
    Same(usize),
    /// A piece of joined deltas.
    Made(Box<Event>),
}

/// Joins neighbouring deltas of one kind and one id into pieces of at most `max_bytes` of text, or into one where that is 0. A
/// grapheme cluster that is longer than a piece stays whole. What is no delta passes, and stands between its neighbours.
pub fn join(events: &[&Event], max_bytes: usize) -> Vec<Joined> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(first) = events.get(at) {
        let run = 1 + events[at + 1..].iter().take_while(|next| belong_together(first, next)).count();
        pieces(&events[at..at + run], at, max_bytes, &mut out);
        at += run;
    }
    out
}

fn pieces(run: &[&Event], index: usize, max_bytes: usize, out: &mut Vec<Joined>) {
    let max_bytes = if max_bytes == 0 { usize::MAX } else { max_bytes };
    let fits = |event: &Event| text(&event.payload).is_none_or(|text| text.len() <= max_bytes);
    if run.len() == 1 && fits(run[0]) {
        return out.push(Joined::Same(index));
    }
    let mut whole = run[0].clone();
    // Where each delta ends.
    let mut ends = Vec::with_capacity(run.len());
    for (nth, event) in run.iter().enumerate() {
        if nth > 0 {
            extend(&mut whole, event);
        }
        ends.push(text(&whole.payload).map_or(0, Text::len));
    }
    if fits(&whole) {
        return out.push(Joined::Made(Box::new(whole)));
    }
    let Some(text) = text_mut(&mut whole.payload).map(std::mem::take) else { return };
    let mut start = 0;
    while start < text.len() {
        let end = cut(&text, start, max_bytes, &ends);
        let mut piece = whole.clone();
        if let Some(place) = text_mut(&mut piece.payload) {
            *place = text[start..end].into();
        }
        let told = ends.partition_point(|&known| known <= end);
        (piece.seq, piece.time) = match told.checked_sub(1) {
            Some(last) => (run[last].seq, run[last].time),
            // A reader that resumes here gets the first delta again, from its beginning.
            None => (run[0].seq.saturating_sub(1), run[0].time),
        };
        out.push(Joined::Made(Box::new(piece)));
        start = end;
    }
}

/// Where the piece that begins at `start` ends: after it, between two grapheme clusters.
fn cut(text: &str, start: usize, max_bytes: usize, ends: &[usize]) -> usize {
    let limit = start.saturating_add(max_bytes);
    if limit >= text.len() {
        return text.len();
    }
    let whole =
        |at: usize| text.is_char_boundary(at) && GraphemeCursor::new(at, text.len(), true).is_boundary(text, 0) == Ok(true);
    let inside = ends.partition_point(|&end| end <= start)..ends.partition_point(|&end| end <= limit);
    if let Some(end) = ends[inside].iter().rev().find(|&&end| whole(end)) {
        return *end;
    }
    if let Some(end) = (start + 1..=limit).rev().find(|&at| whole(at)) {
        return end;
    }
    (limit + 1..text.len()).find(|&at| whole(at)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use unicode_segmentation::UnicodeSegmentation;

    use super::*;
    use crate::event::{Context, Payload, TextDelta};

    fn delta(seq: u64, id: &str, text: &str) -> Event {
        let payload = Payload::TextDelta(TextDelta { message_id: id.into(), text: text.into() });
        Event { seq, time: seq * 10, context: Context::of_session(&"s".into()).into(), payload, extra: None }
    }

    fn joined(events: &[Event], max_bytes: usize) -> Vec<(u64, String)> {
        let events: Vec<_> = events.iter().collect();
        let told = |joined: Joined| match joined {
            Joined::Same(index) => (events[index].seq, text(&events[index].payload).unwrap().to_string()),
            Joined::Made(event) => (event.seq, text(&event.payload).unwrap().to_string()),
        };
        join(&events, max_bytes).into_iter().map(told).collect()
    }

    fn texts(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
        expected.iter().map(|(seq, text)| (*seq, (*text).to_owned())).collect()
    }

    #[test]
    fn edge_28_ids_are_not_mixed_and_neighbours_are_joined() {
        let events = [delta(1, "a", "x"), delta(2, "a", "y"), delta(3, "b", "p"), delta(4, "a", "z")];
        assert_eq!(joined(&events, 0), texts(&[(2, "xy"), (3, "p"), (4, "z")]));
    }

    #[test]
    fn a_piece_ends_with_a_delta_where_it_can() {
        let events = [delta(1, "a", "one "), delta(2, "a", "two "), delta(3, "a", "three")];
        assert_eq!(joined(&events, 9), texts(&[(2, "one two "), (3, "three")]));
        assert_eq!(joined(&events, 3), texts(&[(0, "one"), (1, " "), (1, "two"), (2, " "), (2, "thr"), (3, "ee")]));
    }

    #[test]
    fn edge_28_a_pair_that_two_deltas_share_is_not_cut() {
        // A flag is two letters; the deltas part them.
        let events = [delta(1, "a", "ab\u{1F1E8}"), delta(2, "a", "\u{1F1ED}!")];
        assert_eq!(joined(&events, 9), texts(&[(0, "ab"), (2, "\u{1F1E8}\u{1F1ED}!")]));
        let family = "\u{1F469}\u{200D}\u{1F4BB}";
        assert_eq!(joined(&[delta(7, "a", family)], 4), texts(&[(7, family)]));
    }

    proptest! {
        #[test]
        fn pieces_are_the_text_and_end_between_clusters(
            parts in prop::collection::vec("[ae\u{301}\u{1F1E8}\u{1F1ED}\u{1F469}\u{200D}\u{1F4BB}\u{1F3FD}\r\n]{0,6}", 1..12),
            max_bytes in 1..40_usize,
        ) {
            let events: Vec<_> = parts.iter().enumerate().map(|(at, part)| delta(at as u64 + 1, "m", part)).collect();
            let pieces = joined(&events, max_bytes);
            let whole = parts.concat();
            prop_assert_eq!(pieces.iter().map(|(_, text)| text.as_str()).collect::<String>(), whole.clone());
            let boundaries: Vec<_> = whole.grapheme_indices(true).map(|(at, _)| at).chain([whole.len()]).collect();
            let mut at = 0;
            for (seq, text) in &pieces {
                prop_assert!(boundaries.contains(&at));
                prop_assert!(text.len() <= max_bytes || text.graphemes(true).count() == 1, "{text:?}");
                at += text.len();
                // Resuming after this piece's seq misses nothing.
                let known: usize = parts[..*seq as usize].iter().map(String::len).sum();
                prop_assert!(known <= at);
            }
        }
    }
}
