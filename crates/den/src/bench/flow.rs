//! Bytes through: copies in and out, output.

use std::{io::Write as _, process::Stdio, time::Instant};

use anyhow::Context as _;
use den_api::{ExecRequest, output::OutputKind};

use super::{Bench, report::Measure};

/// `den cp` of one file into a computer.
pub async fn copy_in(bench: &Bench) -> anyhow::Result<Measure> {
    let file = payload(bench.args.copy_mib)?;
    let view = bench.create("cp").await?;
    let from = file.path().to_string_lossy().into_owned();
    let mut rates = Vec::new();
    for _ in 0..bench.runs(3) {
        rates.push(copy(bench, &from, &format!("{}:/root/payload", view.name))?);
        bench.run(&view.name, &["rm", "/root/payload"]).await?;
    }
    bench.client.remove_now(&view.name).await?;
    let note =
        format!("`den cp` of one file of {} MiB, the whole process; source in the page cache", bench.args.copy_mib);
    Ok(Measure::new("cp_in_mb_s", "MB/s", rates, note).goal("p50 ≥ 400", |m| m.p50 >= 400.0))
}

/// `den cp` of one file out of a computer.
pub async fn copy_out(bench: &Bench) -> anyhow::Result<Measure> {
    let file = payload(bench.args.copy_mib)?;
    let view = bench.create("cp").await?;
    let inside = format!("{}:/root/payload", view.name);
    copy(bench, &file.path().to_string_lossy(), &inside)?;
    let folder = tempfile::Builder::new().prefix("den-bench-").tempdir_in("/var/tmp")?;
    let to = folder.path().join("payload");
    let mut rates = Vec::new();
    for _ in 0..bench.runs(3) {
        rates.push(copy(bench, &inside, &to.to_string_lossy())?);
        fs_err::remove_file(&to)?;
    }
    bench.client.remove_now(&view.name).await?;
    let note = format!("`den cp` of one file of {} MiB, the whole process", bench.args.copy_mib);
    Ok(Measure::new("cp_out_mb_s", "MB/s", rates, note).goal("p50 ≥ 400", |m| m.p50 >= 400.0))
}

/// A command's output over the API, recorded on its way.
pub async fn output(bench: &Bench) -> anyhow::Result<Measure> {
    let view = bench.create("output").await?;
    // A log keeps 1 GiB unless told otherwise: what is more would be cut for a reader that lags.
    let wanted = u64::from(bench.args.copy_mib.min(960)) << 20;
    let request = ExecRequest {
        argv: ["head", "-c", &wanted.to_string(), "/dev/zero"].map(str::to_owned).into(),
        ..ExecRequest::default()
    };
    let (mut rates, mut cut) = (Vec::new(), 0);
    for _ in 0..bench.runs(3) {
        let start = Instant::now();
        let mut stream = bench.client.exec_stream(&view.name, &request).await?;
        let mut got = 0;
        while let Some(frame) = stream.next().await? {
            match frame.kind {
                OutputKind::Stdout => got += frame.payload.len() as u64,
                OutputKind::Cut => cut += 1,
                _ => {}
            }
        }
        rates.push(got as f64 / start.elapsed().as_secs_f64() / 1e6);
        anyhow::ensure!(cut > 0 || got == wanted, "{got} of {wanted} bytes of output came");
    }
    bench.client.remove_now(&view.name).await?;
    let mut note = format!("`head -c {wanted} /dev/zero`, recorded and read while it runs");
    if cut > 0 {
        note.push_str(&format!("; cut {cut} times: the reader was overtaken, cut bytes do not count"));
    }
    Ok(Measure::new("output_mb_s", "MB/s", rates, note).goal("p50 ≥ 300", |m| m.p50 >= 300.0))
}

fn copy(bench: &Bench, from: &str, to: &str) -> anyhow::Result<f64> {
    let mut command = bench.den(&["cp", from, to])?;
    let start = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().context("cannot start den")?;
    let seconds = start.elapsed().as_secs_f64();
    anyhow::ensure!(status.success(), "`den cp {from} {to}` ended with {status}");
    Ok((u64::from(bench.args.copy_mib) << 20) as f64 / seconds / 1e6)
}

/// A file without holes: every block differs.
pub fn payload(mib: u32) -> anyhow::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::Builder::new().prefix("den-bench-").tempfile_in("/var/tmp")?;
    let mut block = vec![0_u8; 1 << 20];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for byte in &mut block {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
    for number in 0..mib {
        block[..4].copy_from_slice(&number.to_le_bytes());
        file.write_all(&block)?;
    }
    file.as_file().sync_all()?;
    Ok(file)
}
