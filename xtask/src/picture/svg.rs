//! Draws the picture: the loss above, the leases of each worker below, over one axis of time.

use std::fmt::Write as _;

use super::record::{End, Record, WorkerHistory};

/// Size and margins in pixels.
const WIDTH: f64 = 880.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 44.0;
const CHART_HEIGHT: f64 = 220.0;
const LANE_HEIGHT: f64 = 30.0;
const LANE_GAP: f64 = 10.0;
const AXIS_HEIGHT: f64 = 44.0;
/// One color for each lane; people who see few colors can tell them apart too.
const COLORS: [&str; 2] = ["#0072b2", "#d55e00"];
const INK: &str = "#24292f";
const PALE: &str = "#8c959f";
/// Losses between two marks of the axis.
const LOSS_STEP: f64 = 0.5;
/// Seconds between two marks of the time axis: the first of these that needs at most
/// [`TIME_MARKS_MAX`] marks.
const TIME_STEPS: [f64; 6] = [1.0, 2.0, 5.0, 10.0, 30.0, 60.0];
const TIME_MARKS_MAX: f64 = 12.0;

struct Scale {
    seconds: f64,
    loss_min: f64,
    loss_max: f64,
}

impl Scale {
    fn of(record: &Record) -> Self {
        let losses = record
            .held_out
            .iter()
            .map(|(_, loss)| *loss)
            .chain(record.training.iter().map(|(_, loss, _)| *loss))
            .chain([record.bigram]);
        let (low, high) = losses.fold((f64::MAX, f64::MIN), |(low, high), loss| {
            (low.min(loss), high.max(loss))
        });
        Self {
            seconds: record.end.max(1.0),
            loss_min: (low / LOSS_STEP).floor() * LOSS_STEP,
            loss_max: (high / LOSS_STEP).ceil() * LOSS_STEP,
        }
    }

    fn x(&self, seconds: f64) -> f64 {
        LEFT + seconds / self.seconds * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, loss: f64) -> f64 {
        let share = (self.loss_max - loss) / (self.loss_max - self.loss_min).max(LOSS_STEP);
        TOP + share * CHART_HEIGHT
    }
}

/// The picture of a run.
pub(super) fn draw(record: &Record) -> String {
    let scale = Scale::of(record);
    let lanes_top = TOP + CHART_HEIGHT + 24.0;
    let lanes_bottom = lanes_top + record.lanes.len() as f64 * (LANE_HEIGHT + LANE_GAP);
    let height = lanes_bottom + AXIS_HEIGHT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"{INK}\" role=\"img\">\n\
         <title>Held-out loss falls while a worker is killed and comes back</title>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    text(
        &mut svg,
        LEFT,
        22.0,
        "start",
        INK,
        "loss (nats a token): line held-out, dots training",
    );
    losses(&mut svg, &scale, record);
    let leases = record.lanes.iter().flat_map(|lane| &lane.leases);
    let lost: Vec<&str> = leases
        .filter(|lease| lease.end == End::Lost)
        .map(|lease| unit(&lease.unit))
        .collect();
    for (index, lane) in record.lanes.iter().enumerate() {
        let top = lanes_top + index as f64 * (LANE_HEIGHT + LANE_GAP);
        draw_lane(&mut svg, &scale, (index, lane), top, &lost);
    }
    axis(&mut svg, &scale, record, lanes_bottom);
    svg.push_str("</svg>\n");
    svg
}

fn losses(svg: &mut String, scale: &Scale, record: &Record) {
    let marks = ((scale.loss_max - scale.loss_min) / LOSS_STEP).round() as u32;
    for mark in 0..=marks {
        let loss = scale.loss_min + f64::from(mark) * LOSS_STEP;
        let y = scale.y(loss);
        line(svg, (LEFT, y), (WIDTH - RIGHT, y), "#eaeef2", "");
        text(svg, LEFT - 8.0, y + 4.0, "end", PALE, &format!("{loss:.1}"));
    }
    let y = scale.y(record.bigram);
    line(svg, (LEFT, y), (WIDTH - RIGHT, y), PALE, "4 4");
    let label = format!("bigram entropy of the text {:.2}", record.bigram);
    text(svg, LEFT + 6.0, y - 5.0, "start", PALE, &label);
    for (at, loss, lane) in &record.training {
        let (x, y) = (scale.x(*at), scale.y(*loss));
        let color = color(*lane);
        put(
            svg,
            format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>"),
        );
    }
    let points: Vec<String> = record
        .held_out
        .iter()
        .map(|(at, loss)| format!("{:.1},{:.1}", scale.x(*at), scale.y(*loss)))
        .collect();
    put(
        svg,
        format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{INK}\" stroke-width=\"2\"/>",
            points.join(" ")
        ),
    );
    if let Some((at, loss)) = record.held_out.last() {
        let (x, y) = (scale.x(*at), scale.y(*loss));
        text(svg, x, y + 18.0, "end", INK, &format!("{loss:.3}"));
    }
}

/// Draws the leases of one worker. The name of a lost unit is written on it, and again where the
/// unit was done in the end, which `again` lists.
fn draw_lane(
    svg: &mut String,
    scale: &Scale,
    (index, lane): (usize, &WorkerHistory),
    top: f64,
    again: &[&str],
) {
    let middle = top + LANE_HEIGHT / 2.0 + 4.0;
    text(
        svg,
        LEFT - 8.0,
        middle,
        "end",
        color(index),
        &format!("worker {index}"),
    );
    for lease in &lane.leases {
        let (x, end) = (scale.x(lease.from), scale.x(lease.to));
        let width = (end - x - 1.0).max(0.5);
        let opacity = if lease.unit.contains("train") {
            0.85
        } else {
            0.35
        };
        let (fill, dash) = match lease.end {
            End::Result => (color(index), ""),
            End::Lost => ("none", " stroke-dasharray=\"3 3\""),
        };
        put(
            svg,
            format_args!(
                "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{LANE_HEIGHT}\" \
                 fill=\"{fill}\" fill-opacity=\"{opacity}\" stroke=\"{}\"{dash}/>",
                color(index)
            ),
        );
        let words = match lease.end {
            End::Lost => format!("kill -9 · {}", unit(&lease.unit)),
            End::Result if again.contains(&unit(&lease.unit)) => unit(&lease.unit).to_owned(),
            End::Result => continue,
        };
        let ink = if lease.end == End::Lost {
            INK
        } else {
            "#ffffff"
        };
        text(svg, (x + end) / 2.0, middle, "middle", ink, &words);
    }
    for back in lane.joined.iter().skip(1) {
        let x = scale.x(*back);
        line(svg, (x, top), (x, top + LANE_HEIGHT), INK, "");
        text(svg, x - 4.0, middle, "end", INK, "back");
    }
}

fn axis(svg: &mut String, scale: &Scale, record: &Record, bottom: f64) {
    for (round, at) in record.rounds.iter().enumerate() {
        let x = scale.x(*at);
        line(svg, (x, TOP), (x, bottom), "#d0d7de", "2 3");
        text(
            svg,
            x + 3.0,
            TOP - 6.0,
            "start",
            PALE,
            &format!("round {round}"),
        );
    }
    let step = TIME_STEPS
        .into_iter()
        .find(|step| scale.seconds / step <= TIME_MARKS_MAX)
        .unwrap_or(120.0);
    let marks = (scale.seconds / step).floor() as u32;
    for mark in 0..=marks {
        let seconds = f64::from(mark) * step;
        let label = format!("{seconds:.0}");
        text(svg, scale.x(seconds), bottom + 16.0, "middle", PALE, &label);
    }
    let words = "seconds since `diloctl run new`; bars are leases: dark training, pale evaluation";
    text(svg, LEFT, bottom + 34.0, "start", PALE, words);
}

/// Round and unit of a lease, without its epoch.
fn unit(lease: &str) -> &str {
    lease.split('@').next().unwrap_or(lease)
}

fn color(lane: usize) -> &'static str {
    COLORS[lane % COLORS.len()]
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), color: &str, dash: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    put(
        svg,
        format_args!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{color}\" \
             stroke-dasharray=\"{dash}\"/>"
        ),
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, color: &str, words: &str) {
    put(
        svg,
        format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{color}\">{words}</text>"
        ),
    );
}

fn put(svg: &mut String, element: std::fmt::Arguments<'_>) {
    writeln!(svg, "{element}").expect("a string takes everything");
}
