-- For people who read views in SQL: MessagePack as JSON, by the rules of `session view -f json`.
-- Binary is base64, an extension type {"ext": n, "data": base64}, NaN and infinity null, and keys
-- are text. Of two keys that are the same text then both stand. The result is json and not jsonb,
-- which has no \u0000; of a view that has one PostgreSQL takes no part out (->> and the like).
-- Raises an error for what is not one whole value of MessagePack.
CREATE OR REPLACE FUNCTION {schema}.view_json(data bytea) RETURNS json LANGUAGE plpgsql
IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp SET extra_float_digits = 1
AS $function$
DECLARE
  size CONSTANT int := octet_length(data);
  -- Of the number or length that follows the heads from 192 to 223.
  widths CONSTANT int[] := '{0,0,0,0,1,2,4,1,2,4,4,8,1,2,4,8,1,2,4,8,0,0,0,0,0,1,2,4,2,4,2,4}';
  at int := 0;             -- of the next byte
  head int;                -- the byte that begins a value
  width int;
  bits bigint;             -- the number or length that follows it
  kind "char";             -- of a value with a length: text, binary, extension or container
  n bigint;                -- its length
  code int;                -- of an extension type
  number float8;
  bytes bytea;
  piece text;              -- the value
  pieces text[] := '{}';   -- as each text that grows would be copied again and again
  before text := '';       -- what stands between the value before and this one
  in_map bool := false;    -- the container around, and how many values it lacks
  lacking bigint := 1;
  depth int := 0;
  maps bool[] := '{}';     -- the same of the containers around that
  lacks bigint[] := '{}';
BEGIN
  data := data || ''::bytea; -- out of line and compressed it would be read for each value
  LOOP
    IF at >= size THEN
      RAISE EXCEPTION 'not MessagePack: cut short' USING ERRCODE = 'data_exception';
    END IF;
    head := get_byte(data, at);
    at := at + 1;
    kind := '';
    IF head BETWEEN 160 AND 191 THEN
      kind := 't';
      n := head - 160;
    ELSIF head < 128 THEN
      piece := head::text;
    ELSIF head < 160 THEN
      kind := 'c';
      n := head & 15;
    ELSIF head >= 224 THEN
      piece := (head - 256)::text;
    ELSE
      width := widths[head - 191];
      IF at + width > size THEN
        RAISE EXCEPTION 'not MessagePack: cut short' USING ERRCODE = 'data_exception';
      ELSIF width > 0 THEN
        bits := ('x' || lpad(encode(substr(data, at + 1, width), 'hex'), 16, '0'))::bit(64)::bigint;
        at := at + width;
      END IF;
      n := bits;
      IF head >= 220 THEN
        kind := 'c';
      ELSIF head >= 217 THEN
        kind := 't';
      ELSIF head >= 212 THEN
        kind := 'e';
        n := 1 << (head - 212);
      ELSIF head >= 208 THEN
        IF width < 8 AND bits >= 1::bigint << (8 * width - 1) THEN
          bits := bits - (1::bigint << 8 * width);
        END IF;
        piece := bits::text;
      ELSIF head >= 204 THEN
        piece := CASE WHEN bits < 0 THEN (bits + 18446744073709551616)::text ELSE bits::text END;
      ELSIF head >= 202 THEN
        -- A float is its fraction times a power of two, in two steps as that may be too small.
        IF head = 203 THEN
          n := (bits >> 52) & 2047;
          number := (bits & 4503599627370495) + CASE WHEN n = 0 THEN 0 ELSE 4503599627370496 END;
          code := CASE WHEN n = 2047 THEN NULL ELSE greatest(n, 1) - 1075 END;
        ELSE
          n := (bits >> 23) & 255;
          number := (bits & 8388607) + CASE WHEN n = 0 THEN 0 ELSE 8388608 END;
          code := CASE WHEN n = 255 THEN NULL ELSE greatest(n, 1) - 150 END;
          bits := bits << 32;
        END IF;
        piece := (number * power(2::float8, code / 2) * power(2::float8, code - code / 2))::text;
        piece := CASE WHEN piece IS NULL THEN 'null' ELSE
          CASE WHEN bits < 0 THEN '-' ELSE '' END || piece ||
          CASE WHEN piece ~ '[.e]' THEN '' ELSE '.0' END END;
      ELSIF head >= 199 THEN
        kind := 'e';
      ELSIF head >= 196 THEN
        kind := 'b';
      ELSIF head = 193 THEN
        RAISE EXCEPTION 'not MessagePack: 0xc1 begins no value' USING ERRCODE = 'data_exception';
      ELSE
        piece := CASE head WHEN 192 THEN 'null' WHEN 194 THEN 'false' ELSE 'true' END;
      END IF;
    END IF;
    IF kind = 'c' THEN
      IF in_map AND lacking % 2 = 0 THEN
        RAISE EXCEPTION 'a list or map is used as a map key' USING ERRCODE = 'data_exception';
      END IF;
      IF n > 0 THEN
        depth := depth + 1;
        maps[depth] := in_map;
        lacks[depth] := lacking;
        in_map := head < 144 OR head > 221;
        lacking := CASE WHEN in_map THEN 2 * n ELSE n END;
        before := before || CASE WHEN in_map THEN '{' ELSE '[' END;
        CONTINUE;
      END IF;
      piece := CASE WHEN head < 144 OR head > 221 THEN '{}' ELSE '[]' END;
    ELSIF kind <> '' THEN
      IF at + n + (kind = 'e')::int > size THEN
        RAISE EXCEPTION 'not MessagePack: cut short' USING ERRCODE = 'data_exception';
      END IF;
      IF kind = 'e' THEN
        code := get_byte(data, at);
        at := at + 1;
      END IF;
      bytes := substr(data, at + 1, n::int);
      at := at + n;
      IF kind <> 't' THEN
        piece := '"' || replace(encode(bytes, 'base64'), chr(10), '') || '"';
        IF kind = 'e' THEN
          code := CASE WHEN code > 127 THEN code - 256 ELSE code END;
          piece := '{"ext": ' || code || ', "data": ' || piece || '}';
        END IF;
      ELSIF position('\x00'::bytea IN bytes) = 0 THEN
        piece := to_json(convert_from(bytes, 'UTF8'))::text;
      ELSE
        -- No text holds a NUL: bytes 0 and 1 become 1 and a digit, after which parts are escaped.
        piece := regexp_replace(encode(bytes, 'hex'), '(..)', '\1 ', 'g');
        piece := replace(replace(piece, '01 ', '0131 '), '00 ', '0130 ');
        SELECT '"' || string_agg(CASE WHEN nth = 1 THEN '' ELSE '\u000' || left(part, 1) END
          || substr(quoted, 2, length(quoted) - 2), '' ORDER BY nth) || '"'
        INTO piece
        FROM unnest(string_to_array(convert_from(decode(piece, 'hex'), 'UTF8'), chr(1)))
          WITH ORDINALITY AS parts (part, nth),
          LATERAL (SELECT to_json(substr(part, 1 + (nth > 1)::int))::text) AS made (quoted);
      END IF;
    END IF;
    IF in_map AND lacking % 2 = 0 AND kind <> 't' AND kind <> 'b' THEN
      piece := to_json(piece)::text;
    END IF;
    pieces := array_append(pieces, before || piece);
    LOOP
      lacking := lacking - 1;
      EXIT WHEN lacking > 0 OR depth = 0;
      pieces := array_append(pieces, CASE WHEN in_map THEN '}' ELSE ']' END);
      in_map := maps[depth];
      lacking := lacks[depth];
      depth := depth - 1;
    END LOOP;
    EXIT WHEN lacking = 0;
    before := CASE WHEN in_map AND lacking % 2 = 1 THEN ':' ELSE ',' END;
  END LOOP;
  IF at < size THEN
    RAISE EXCEPTION 'not MessagePack: bytes are left over' USING ERRCODE = 'data_exception';
  END IF;
  RETURN array_to_string(pieces, '')::json;
END
$function$;
