"""Cells of a spreadsheet, beside what Excel and LibreOffice show of them."""

import datetime

import pytest

from camelid.curate.documents.number_formats import shown_value


@pytest.mark.parametrize(
    "value,shape,shown",
    [
        (3, "General", "3"),
        (2.50, "General", "2.5"),
        (0.1 + 0.2, "General", "0.3"),
        (1234.5, "#,##0.00", "1,234.50"),
        (0.125, "0%", "13%"),
        (2.5, "0", "3"),
        (-2.5, "0", "-3"),
        (1.125, "0.00", "1.13"),
        (1.005, "0.00", "1.01"),
        (-5, "$#,##0.00", "-$5.00"),
        (-5, "#,##0;(#,##0)", "(5)"),
        (5, "[Red]0.00", "5.00"),
        (5, "[Green]+0.0;[Red]-0.0", "+5.0"),
        (150, "[>=100]0.0;0.00", "150.0"),
        (15, "[>=100]0.0;0.00", "15.00"),
        (0, '#,##0;-#,##0;"none"', "none"),
        (1290000, '#,##0,"K"', "1,290K"),
        (1290, '_($* #,##0.00_);_($* (#,##0.00);_($* "-"??_);_(@_)', "$1,290.00"),
        (0, '_($* #,##0.00_);_($* (#,##0.00);_($* "-"??_);_(@_)', "$-"),
        (1234567, '#,##0.00\\ "€"', "1,234,567.00 €"),
        (123456, "0.00E+00", "1.23E+05"),
        (0.00999, "0.0E+00", "1.0E-02"),
        (5550123, "000-0000", "555-0123"),
        (0.5, ".00", ".50"),
        (1.5, "0.0##", "1.5"),
        (5, "0 kg", "5"),
        (0.5, "# ?/?", "0.5"),
        (1, "[DBNum2]0", "1"),
        (3, '"about "General', "about 3"),
        (0.00001, "General", "0.00001"),
        (10**30, "#,##0.00", str(10**30)),
        (0.125, "0.0%", "12.5%"),
        (12.5, '"$"#,##0.00', "$12.50"),
        (12, "[$¥-804]0", "¥12"),
        (7, "0000", "0007"),
        (True, "General", "TRUE"),
        (datetime.datetime(2024, 3, 5), "yyyy-mm-dd", "2024-03-05"),
        (datetime.datetime(2024, 3, 5), 'yyyy"年"m"月"d"日"', "2024年3月5日"),
        (datetime.datetime(2024, 3, 5, 9, 30), "dd/mm/yyyy hh:mm", "05/03/2024 09:30"),
        (datetime.datetime(2024, 3, 5), "General", "2024-03-05"),
        (datetime.datetime(2024, 3, 5), "dddd, mmmm dd, yyyy", "Tuesday, March 05, 2024"),
        (datetime.datetime(2024, 3, 5), "ddd dd-mmm-yy;@", "Tue 05-Mar-24"),
        (datetime.datetime(2024, 3, 5), "mmmmm", "M"),
        (datetime.datetime(2024, 3, 5), "[$-404]mmmm d", "2024-03-05"),
        (datetime.datetime(2024, 3, 5), "[$-804]yyyy年m月d日aaaa", "2024年3月5日星期二"),
        (datetime.datetime(2024, 3, 5), "ggge", "2024-03-05"),
        (datetime.datetime(2024, 3, 5, 14, 30), "m/d/yyyy h:mm AM/PM", "3/5/2024 2:30 PM"),
        (datetime.datetime(2024, 3, 5, 0, 7, 9), "h:mm:ss AM/PM", "12:07:09 AM"),
        (datetime.datetime(2024, 3, 5, 9, 5, 7, 250000), "mm:ss.00", "05:07.25"),
        (datetime.timedelta(hours=26, minutes=30), "[h]:mm", "26:30"),
        (datetime.timedelta(minutes=95, seconds=7), "[mm]:ss", "95:07"),
        (datetime.timedelta(hours=26, minutes=30), "General", "26:30:00"),
        (datetime.time(9, 5), "h:mm", "9:05"),
        (datetime.time(9, 5), "yyyy-mm-dd", "09:05:00"),
        (None, "General", ""),
    ],
)
def test_cells_are_read_as_a_spreadsheet_shows_them(value, shape, shown):
    assert shown_value(value, shape) == shown
