//! Seconds since 1970 as a date, and back. Gregorian throughout, UTC, without leap seconds: what the chip knows.

const SECONDS_PER_DAY: i64 = 86_400;
/// Days from 0000-03-01, where this calendar's years begin, to 1970-01-01.
const DAYS_TO_1970: i64 = 719_468;
/// Days in 400 years, after which the calendar repeats.
const DAYS_PER_ERA: i64 = 146_097;

/// What the chip shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) year: u16,
    /// From 1.
    pub(super) month: u8,
    /// From 1.
    pub(super) day: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

impl Date {
    /// The date at a moment; what lies outside the years 0 to 9999 is their first or last second.
    pub(super) fn at(seconds: i64) -> Self {
        let first = Self { year: 0, month: 1, day: 1, hour: 0, minute: 0, second: 0 };
        let last = Self { year: 9999, month: 12, day: 31, hour: 23, minute: 59, second: 59 };
        let seconds = seconds.clamp(first.seconds(), last.seconds());
        let (days, rest) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
        // Years that begin in March end with February, so that a leap day comes last.
        let shifted = days + DAYS_TO_1970;
        let (era, day_of_era) = (shifted.div_euclid(DAYS_PER_ERA), shifted.rem_euclid(DAYS_PER_ERA));
        let leaps = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
        let year_of_era = (day_of_era - leaps) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Five months from March on have 153 days.
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12 + 1;
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        Self {
            year: year as u16,
            month: month as u8,
            day: day as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }

    /// The moment of a date. A date that is none (a 31st of April) counts on into the next month.
    pub(super) fn seconds(self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let year = i64::from(self.year) - i64::from(month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + i64::from(self.day) - 1;
        let day_of_era = 365 * year_of_era + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * DAYS_PER_ERA + day_of_era - DAYS_TO_1970;
        days * SECONDS_PER_DAY
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }

    /// From 1, Sunday, to 7.
    pub(super) fn weekday(self) -> u8 {
        // 1970-01-01 was a Thursday.
        (self.seconds().div_euclid(SECONDS_PER_DAY) + 4).rem_euclid(7) as u8 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(seconds: i64, expect: (u16, u8, u8, u8, u8, u8), weekday: u8) {
        let date = Date::at(seconds);
        let found = (date.year, date.month, date.day, date.hour, date.minute, date.second);
        assert_eq!((found, date.weekday()), (expect, weekday), "{seconds}");
        assert_eq!(date.seconds(), seconds);
    }

    #[test]
    fn known_moments_have_their_dates() {
        check(0, (1970, 1, 1, 0, 0, 0), 5);
        check(-1, (1969, 12, 31, 23, 59, 59), 4);
        check(951_782_400, (2000, 2, 29, 0, 0, 0), 3);
        check(1_709_164_799, (2024, 2, 28, 23, 59, 59), 4);
        check(4_107_542_400, (2100, 3, 1, 0, 0, 0), 2);
    }

    #[test]
    fn every_day_of_eight_centuries_follows_the_one_before() {
        let mut before = Date::at(-SECONDS_PER_DAY);
        for day in 0..800 * 365 {
            let date = Date::at(day * SECONDS_PER_DAY);
            assert_eq!(date.seconds(), day * SECONDS_PER_DAY);
            let next_day = date.day == before.day + 1 && date.month == before.month;
            assert!(next_day || date.day == 1 && before.day >= 28, "{before:?} {date:?}");
            before = date;
        }
    }

    #[test]
    fn no_moment_is_out_of_range() {
        assert_eq!(Date::at(i64::MIN).year, 0);
        assert_eq!(Date::at(i64::MAX).year, 9999);
        let none = Date { year: u16::MAX, month: 99, day: 255, hour: 255, minute: 255, second: 255 };
        assert_eq!(Date::at(none.seconds()).year, 9999);
    }
}
