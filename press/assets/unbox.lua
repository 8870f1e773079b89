-- A notebook's cells come as boxes; a heading inside a box would be missing from the table of contents.
-- Each cell is also read by itself, so two headings may have been given one address: that of a
-- documented name is kept, since links lead there, and the other gets a number.
local function unbox(div)
  if div.classes:includes("cell") then return div.content end
end

function Pandoc(doc)
  doc = doc:walk({ Div = unbox })
  local taken = {}
  local function settle(header)
    local id, n = header.identifier, 0
    while taken[header.identifier] do
      n = n + 1
      header.identifier = id .. "-" .. n
    end
    taken[header.identifier] = true
    return header
  end
  local function only(api)
    return { Header = function(header) if header.classes:includes("api") == api then return settle(header) end end }
  end
  -- The title is the one heading of level 1, and no level below it is left out.
  local last = 1
  local function level(header)
    header.level = math.max(2, math.min(header.level, last + 1))
    last = header.level
    return header
  end
  return doc:walk(only(true)):walk(only(false)):walk({ Header = level })
end
