"""Small PDF files, written by hand: pages of lines, each with a size."""

import base64
import zlib
from collections.abc import Sequence

Line = str | tuple[str, int]


def pdf_of(pages: Sequence[Sequence[Line]], *, ligatures: bool = False) -> bytes:
    """Return a PDF in Helvetica. With ``ligatures`` its font has signs of its own for "fi" and "ff", as TeX's have."""
    encoding = "/WinAnsiEncoding"
    if ligatures:
        encoding = "<< /BaseEncoding /WinAnsiEncoding /Differences [1 /fi /ff] >>"
    font = f"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding {encoding} >>"
    numbers = [4 + 2 * number for number in range(len(pages))]
    kids = " ".join(f"{number} 0 R" for number in numbers)
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>", font]
    for number, page in zip(numbers, pages, strict=True):
        stream = _stream(page, ligatures)
        use = f"/Resources << /Font << /F 3 0 R >> >> /Contents {number + 1} 0 R"
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] {use} >>")
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    written, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(written))
        written += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    count = len(objects) + 1
    end = f"trailer\n<< /Size {count} /Root 1 0 R >>\nstartxref\n{len(written)}\n%%EOF\n"
    return f"{written}xref\n0 {count}\n0000000000 65535 f \n{table}{end}".encode("latin-1")


def _stream(page: Sequence[Line], ligatures: bool) -> str:
    parts, height = [], 800
    for line in page:
        text, size = (line, 10) if isinstance(line, str) else line
        if ligatures:
            text = text.replace("ff", "\x02").replace("fi", "\x01")
        shown = "".join(f"\\{ord(sign):03o}" if sign in "()\\" or ord(sign) < 32 else sign for sign in text)
        parts.append(f"BT /F {size} Tf 50 {height} Td ({shown}) Tj ET")
        height -= 2 * size
    return "\n".join(parts)


# What pdf_of([["Only printing is forbidden."]]) is with AES-256 and a password of its owner, packed.
RESTRICTED = (
    "c-oCrON$*v6y7P+!i6AYS(023M7!P(y$sG|?nQ}VCUZ3^A&YvPx@no|9{SdVOc2}&S*Qzz1Wm}o=t>2_txLBGx^m${T`0Kq2Uy+n$R*c>)x9|N^{"
    "MZi{_3k5ZEsGWqtA0R`u&d|e?}A&-1@iCc#Nvo4)+09=UsNY?HpCxZVn5~O2Q6WTSL&qK9Q{~81hhcp^giD1@k^1Uq#jV_Mpj_E-mH%xwJ3TK}kK"
    "TR9%EvyN&in;UeXcR$?Pq&$t7N_Mi);sh(llmNi3w#YvClEp?k*=oVN$(z#eE-&3G!cHr|c?LmsF4Yz=Sym}dSuS2ebL)D}SZLFI)uHLAd^=46@0"
    "80hrQh`^YndfWRkpBB3ci{HW?djo}FQ0k$(zCywp_?yd`k?s-zj*iY&!5`3|NVo%=fB*0^OK*x{a}=)H=j8B-4~;`&VD5Cy>|z{@V@`%%BQ!U{Op"
    "I{s;|y9f4$@W#2-HP@z+oHb&si!J5Wm<T*k6UhSg~=OqO^X3uc8?npsw)t9LVWxSD0xMAt=BZQ-#^fioW+XPg;jEpc8;W<!Jk+Da86Cc%t|-W#fz"
    "(<U(yRI<DblaeuDD0NH|ZM-AOawlA}mL~{72~zgxbv$NN(L}tE#xRjUb199dnxsf{BGhUdoe)3`OUcn-S&|B*Wzk3hPI9n3O6I-v(y0<fA%#-JGD"
    "WG@miJDW4*r<scpR-C<ZF}bz1OPEHf-%f(<fcT)%s+1nV$;9*@>5Cd2fo32>MC)aI!VQW6w1N364YLJn5i{K3YNf9m0a)T3P35q$vgu-1<N)Ns2-"
    "AQZg1n^+FVy0D?xVI4I+&a6Uvul}{oWDt%Bo@ffrrTzMwB5}wH5G<VDZPs-R-Xttr-E2qLUnsgCXLoa&L0A-83qlD_ngNC&wv)<?+A%Zm`rvob~x"
    "x@*dVzgL#_|iPYlvu$i<0}}GWCi0wuV6wiVYzelE_8!`XZ1}e?NvK%Tdt9#yWy41ax07z(ZtA5d{zYU$x~NsBAF9}DFcD7{hySp!<p_5_cK-}7sV"
    "pGE)T*`QcN%!O}3`!U&{+_jQ"
)
LOCKED = (
    "c-oCrON$*v6jmVydSezY0)o`$ZX%}Z{gBJRBy%r{#yiY4i6BAiaca`TO!v^;lZQVb?%e4rxDX<Oh~mPX?%cR>A-MK|%LH^cZuIn>M=o9$_5-TEI_"
    "LXNpZdB+n;X*?*+o%|e*Nu-9}7k(X~Ir19v9^sclUvmmwoSdo9&|9^xM!8jsaW6+FAj18Up!B!XmCHU#(I{-Xda%CpU`na&u7kge|3t|4bc(TENg"
    "FrSb}-%3o^kAQ#13IYq4G1LGES%|RQnsDWYHV9sJd<VlVApl;nGT}RZvDwiwr14U8J4?@3~4j?PaOTL2zdHFKz-h#f0z9=VkY*JNklk$31uh(650"
    "xSurC4twV-tKP_ONaHYZ^7>sCcb&@ox{)X@BDq{iwi&9hA00ZhhLV^KG^x-(`U`c7w&gI|8nn}+1Fp4edhdA_nvs}6L$5Z(W4LFd*Q*i>+JXM&Oi"
    "U?&xfD=_4MoW!|$)>x8Hwh&^@L;u0StUaE&Nz8PTV;aE0SdBDs@J8}2x^uG;OPCFQ*Lb@FX0${86uM<H{_l5wFjP0osBl@-clCS~Rnw6T$LO&v`_"
    "&>)p&Msv{G8etuH76k~cypo&;P?=}Xd~{AZE+xl3x{4}VSru(cCdC{TM5(>D3R19ECPTe9#s=lEP-h$po1m?enF%8j_t6BOQ^*$OxuPs!2^m)-_r"
    "?jv+~9=i!XNWK9go%z`kRwmgV)N9CeHSu9)hlra(yztCQchA_=%V1{oa%u5e$>|@nkk3V`a3ak_QHYN~RJujIk_4Fpfinq#X+;29rG3DJp5XWf;!"
    "E2S$xoLnDyJr@%dfqylvsl8+&4jV;H|i#AGTsEd?QmIF3W22W!IY8AEAxEw-8noVf;@UL(l92ZH&gl)=B0p|LYRMOsQnd91$S?{!v3rb8uPcNdC5"
    "{hJUiZQhGVx@kJX}N--QC2YAlod=!vw}&pg!QejcA;JPcV4{<SYEl+G<b|0oei&S;HfZ1UkOXmXxhaL8eg8Z@aO~)g#okne?o37{^|DaeoyqtLDB"
    "WT?H7$<6iqN1O=i>L9~kOzwg"
)


def unpacked(packed: str) -> bytes:
    return zlib.decompress(base64.b85decode(packed))
