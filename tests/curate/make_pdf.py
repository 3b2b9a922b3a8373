"""PDF files made by hand, so that the position of every line is known."""

from collections.abc import Sequence
from typing import NamedTuple

FONTS = {"text": "Helvetica", "bold": "Helvetica-Bold", "chinese": "STSong-Light"}


class Put(NamedTuple):
    """A line of text at a place of a page, in points from the lower left corner."""

    x: float
    y: float
    text: str
    size: float = 10
    font: str = "text"


def pdf(pages: Sequence[Sequence[Put]], *, pictures: Sequence[int] = (), fields: Sequence[Put] = ()) -> bytes:
    """A PDF with these pages of 600 x 800 points.

    Args:
      pages: the lines of each page.
      pictures: indices of pages with a picture over the whole page.
      fields: values of text fields of a form on the first page; one of size 0 is hidden, and "[x]" is a marked box.
    """
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    fonts = {}
    for name, base in FONTS.items():
        if name == "chinese":
            objects.append(
                "<< /Type /Font /Subtype /CIDFontType0 /BaseFont /STSong-Light /CIDSystemInfo << /Registry (Adobe) "
                "/Ordering (GB1) /Supplement 2 >> /FontDescriptor << /Type /FontDescriptor /FontName /STSong-Light "
                "/Flags 4 /FontBBox [0 -200 1000 900] /ItalicAngle 0 /Ascent 900 /Descent -200 /StemV 80 >> /DW 1000 >>"
            )
            objects.append(
                f"<< /Type /Font /Subtype /Type0 /BaseFont /{base} /Encoding /UniGB-UCS2-H /DescendantFonts "
                f"[{len(objects)} 0 R] >>"
            )
        else:
            objects.append(f"<< /Type /Font /Subtype /Type1 /BaseFont /{base} /Encoding /WinAnsiEncoding >>")
        fonts[name] = len(objects)
    objects.append(
        "<< /Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 /Length 1 "
        ">>\nstream\n \nendstream"
    )
    image, kids, forms = len(objects), [], []
    for number, put in enumerate(fields):
        marked, code = put.text == "[x]", ("\ufeff" + put.text).encode("utf-16-be").hex()
        value = "/FT /Btn /V /Yes /AS /Yes" if marked else f"/FT /Tx /V <{code}>"
        place = f"/Rect [{put.x} {put.y} {put.x + 200} {put.y + 20}] /F {4 if put.size else 2}"
        states = " /AP << /N << /Yes << >> /Off << >> >> >>" if marked else ""
        objects.append(f"<< /Type /Annot /Subtype /Widget /T (f{number}) {value} {place}{states} >>")
        forms.append(f"{len(objects)} 0 R")
    if forms:
        objects[0] = f"<< /Type /Catalog /Pages 2 0 R /AcroForm << /Fields [{' '.join(forms)}] >> >>"
    named = " ".join(f"/{name} {number} 0 R" for name, number in fonts.items())
    for number, lines in enumerate(pages):
        drawn = "q 600 0 0 800 0 0 cm /picture Do Q\n" if number in pictures else ""
        for put in lines:
            code = put.text.encode("utf-16-be" if put.font == "chinese" else "cp1252").hex()
            drawn += f"BT /{put.font} {put.size} Tf {put.x} {put.y} Td <{code}> Tj ET\n"
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}endstream")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents {len(objects)} 0 R /Resources << /Font << "
            f"{named} >> /XObject << /picture {image} 0 R >> >> /Annots [{'' if number else ' '.join(forms)}] >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    content, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(content))
        content += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    end = (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\n"
    )
    return content + f"{end}startxref\n{len(content)}\n%%EOF\n".encode()


def column(text: str, x: float = 50, y: float = 740, *, width: int, leading: float = 12, **put) -> list[Put]:
    """Lines of at most `width` characters from the top down, with a smaller one at the end of the paragraph."""
    import textwrap

    lines = (
        textwrap.wrap(text, width)
        if put.get("font") != "chinese"
        else [text[i : i + width] for i in range(0, len(text), width)]
    )
    return [Put(x, y - number * leading, line, **put) for number, line in enumerate(lines)]
