//! How bytes, numbers and sizes are written on a command line.
//!
//! Escaped bytes are printable ASCII as it is, and `\t` `\r` `\n` `\'` `\"` `\\` `\xNN` for the
//! rest: what `escape_ascii` of the standard library prints, and what a Rust string literal takes.

/// The bytes that an escaped text stands for.
///
/// # Errors
/// What is wrong with it, if a `\` is followed by something else than listed above.
pub fn unescape(text: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter().copied();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'\\' => match rest.next() {
                Some(b't') => b'\t',
                Some(b'r') => b'\r',
                Some(b'n') => b'\n',
                Some(quoted @ (b'\'' | b'"' | b'\\')) => quoted,
                Some(b'x') => match (hex(rest.next()), hex(rest.next())) {
                    (Some(high), Some(low)) => high << 4 | low,
                    _ => return Err(r"\x needs two hexadecimal digits, as in \x0a".into()),
                },
                _ => return Err(r"after \ comes one of t r n x ' or another \".into()),
            },
            byte => byte,
        };
        bytes.push(byte);
    }
    Ok(bytes)
}

fn hex(digit: Option<u8>) -> Option<u8> {
    char::from(digit?).to_digit(16).map(|digit| digit as u8)
}

/// A number of bytes: `1048576`, `64K`, `256M`, `1.5G`, `256MiB`. K, M and G are powers of 1024.
///
/// # Errors
/// What would be right.
pub fn parse_bytes(text: &str) -> Result<usize, String> {
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_suffix("IB").or(upper.strip_suffix('B')).unwrap_or(&upper);
    parse_scaled(bare, 1024.0).ok_or_else(|| "a size looks like 1048576, 64K, 256M or 1G".into())
}

/// A count: `2000000`, `2,000,000`, `500K`, `2M`. K, M and G are powers of 1000.
///
/// # Errors
/// What would be right.
pub fn parse_count(text: &str) -> Result<u64, String> {
    let upper = text.to_ascii_uppercase().replace([',', '_'], "");
    parse_scaled(&upper, 1000.0)
        .filter(|count| *count > 0)
        .map(|count| count as u64)
        .ok_or_else(|| "a count is at least 1 and looks like 2000000, 500K or 2M".into())
}

/// A number with a suffix K, M or G for the powers of `base`.
fn parse_scaled(text: &str, base: f64) -> Option<usize> {
    let (digits, power) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 1),
        b'M' => (&text[..text.len() - 1], 2),
        b'G' => (&text[..text.len() - 1], 3),
        _ => (text, 0),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    if power == 0 {
        return digits.parse().ok();
    }
    let value = digits.parse::<f64>().ok()? * base.powi(power);
    (value < (1u64 << 53) as f64).then_some(value as usize)
}

/// A whole number with commas: `1,234,567`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of bytes in the unit that leaves one to four digits: `221 MiB`.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} bytes"),
        10_240..10_485_760 => format!("{} KiB", bytes >> 10),
        10_485_760..10_737_418_240 => format!("{} MiB", bytes >> 20),
        _ => format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_escaped_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unescape(all.escape_ascii().to_string().as_bytes()), Ok(all));
        for bad in [r"\", r"\q", r"\x", r"\x1", r"\xg0", r"\u{e9}"] {
            assert!(unescape(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_suffixes() {
        assert_eq!(parse_bytes("1048576"), Ok(1 << 20));
        assert_eq!(parse_bytes("64k"), Ok(64 << 10));
        assert_eq!(parse_bytes("256MiB"), Ok(256 << 20));
        assert_eq!(parse_bytes("1.5G"), Ok(3 << 29));
        assert_eq!(parse_count("2M"), Ok(2_000_000));
        assert_eq!(parse_count("1,500"), Ok(1500));
        for bad in
            ["", "M", "-1", "1T", "1e9", "inf", "nanK", "99999999999999999999", "9999999999G"]
        {
            assert!(parse_bytes(bad).is_err(), "{bad}");
            assert!(parse_count(bad).is_err(), "{bad}");
        }
        assert!(parse_count("0").is_err());
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(size(232_000_000), "221 MiB");
    }
}
